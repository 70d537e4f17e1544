"""What a run directory holds: names, the record of what was run, metrics, and how runs compare."""

from nfllm.rundir.record import (
    CHECKPOINTS_DIR,
    CORPUS_FILE,
    FORMAT_VERSION,
    METRICS_FILE,
    RECORD_FILE,
    REPORT_DIR,
    TOKENIZER_FILE,
    UNKNOWN_DATA,
    RunError,
    RunRecord,
    imported_config,
    read_record,
    resolve,
    run_directory,
    write_record,
)

__all__ = [
    "CHECKPOINTS_DIR",
    "CORPUS_FILE",
    "FORMAT_VERSION",
    "METRICS_FILE",
    "RECORD_FILE",
    "REPORT_DIR",
    "TOKENIZER_FILE",
    "UNKNOWN_DATA",
    "RunError",
    "RunRecord",
    "imported_config",
    "read_record",
    "resolve",
    "run_directory",
    "write_record",
]
