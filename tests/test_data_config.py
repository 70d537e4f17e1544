"""The section `data`: what does not fit together is an error that names the keys."""

import pytest
from data_configs import data_config

from nfllm.config import ConfigError


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 256}, r"data\.vocab_size=256 is outside 257 to 65536"),
        ({"vocab_size": 65_537}, r"data\.vocab_size=65537 .* path of a tokenizer\.json"),
        ({"validation_fraction": 0.0}, r"data\.validation_fraction=0\.0 must lie between 0 and 1"),
        ({"validation_fraction": 1.0}, r"data\.validation_fraction=1\.0 must lie between 0 and 1"),
        ({"dataset": "text_files"}, r"'text_files' needs data\.sources"),
        ({"dataset": "python_source"}, r"'python_source' needs data\.sources"),
        (
            {"dataset": "text_files", "sources": " , ,"},
            r"'text_files' needs data\.sources: paths or globs, separated by commas, not ' , ,'",
        ),
        (
            {
                "dataset": "python_source",
                "sources": "a",
                "validation_split": "separate",
                "validation_source": ",",
            },
            r"'python_source' needs data\.validation_source: paths or globs, separated by commas",
        ),
        ({"sources": "a"}, r"data\.sources='a' has no effect with data\.dataset='python_stdlib'"),
        ({"text_field": "a"}, r"data\.text_field='a' has no effect with data\.dataset='python_std"),
        (
            {"document_separator": "|"},
            r"data\.document_separator='\|' has no effect with data\.dataset='python_stdlib'",
        ),
        (
            {"dataset": "text_files", "sources": "a", "document_separator": ""},
            r"data\.document_separator='' separates nothing",
        ),
        ({"validation_field": "a"}, r"data\.validation_field='a' goes together with .*'field'"),
        ({"validation_split": "field"}, r"data\.validation_field=None goes together"),
        ({"validation_source": "a"}, r"data\.validation_source='a' goes together .*'separate'"),
        (
            {"validation_split": "separate", "dataset": "lm1b"},
            r"data\.validation_source=None goes together",
        ),
        (
            {"validation_split": "separate", "validation_source": "a"},
            r"'separate' does not fit data\.dataset='python_stdlib'",
        ),
        ({"validation_values": "a"}, r"data\.validation_values='a' has no effect"),
        (
            {"validation_split": "field", "validation_field": "a", "validation_values": " , "},
            r"data\.validation_values=' , ' names no value",
        ),
        ({"malformed": "skp"}, r"unknown malformed 'skp'.* did you mean 'skip'\?"),
        ({"window": "document"}, r"unknown window 'document'.* did you mean 'documents'\?"),
        ({"validation_split": "hsh"}, r"unknown validation_split 'hsh'.* did you mean 'hash'\?"),
    ],
)
def test_what_does_not_fit_is_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        data_config("unused", **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"vocab_size": 257},
        {"vocab_size": 65_536},
        {"dataset": "text_files", "sources": "a", "text_field": "b"},
        {"dataset": "text_files", "sources": "a", "document_separator": "<|endoftext|>"},
        {"validation_split": "field", "validation_field": "package", "validation_values": "a,b"},
        {"dataset": "lm1b", "validation_split": "separate", "validation_source": "test"},
    ],
)
def test_what_fits_is_accepted(changes):
    config = data_config("unused", **changes)
    assert {key: getattr(config, key) for key in changes} == changes
