"""The contents of a run directory: file names, the record of a run's config, and metrics."""

from nfllm.rundir.record import (
    CHECKPOINTS_DIR,
    CORPUS_FILE,
    FORMAT_VERSION,
    METRICS_FILE,
    RECORD_FILE,
    REPORT_DIR,
    TOKENIZER_FILE,
    UNKNOWN_DATA,
    Origin,
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
    "Origin",
    "RunError",
    "RunRecord",
    "imported_config",
    "read_record",
    "resolve",
    "run_directory",
    "write_record",
]
