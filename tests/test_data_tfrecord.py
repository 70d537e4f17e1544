"""TFRecord files: the checksum against its published values, and damage of every kind."""

import struct
from pathlib import Path

import pytest

from nfllm.data.tfds_reader import masked_crc32c, read_tfrecord

RECORDED = (
    Path(__file__).parent
    / "tfds/tfrecord/tiny_notes/1.2.0/tiny_notes-train.tfrecord-00000-of-00002"
)


def crc32c(data: bytes) -> int:
    rotated = (masked_crc32c(data) - 0xA282EAD8) & 0xFFFFFFFF
    return (rotated >> 17 | rotated << 15) & 0xFFFFFFFF


def records(path: Path) -> list[bytes]:
    with path.open("rb") as file:
        return list(read_tfrecord(file))


def test_checksum_equals_the_values_of_rfc_3720():
    # RFC 3720, appendix B.4, and the common check value of CRC-32C.
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E
    assert crc32c(b"123456789") == 0xE3069283


def test_recorded_file_has_its_records_and_their_checksums():
    raw, position = RECORDED.read_bytes(), 0
    found = records(RECORDED)
    assert len(found) == 4
    for data in found:
        assert raw[position : position + 8] == struct.pack("<Q", len(data))
        position += 12
        assert raw[position : position + len(data)] == data
        position += len(data)
        assert raw[position : position + 4] == struct.pack("<I", masked_crc32c(data))
        position += 4
    assert position == len(raw)


def test_damaged_data_are_named(tmp_path):
    raw = bytearray(RECORDED.read_bytes())
    raw[30] ^= 1
    path = tmp_path / "a.tfrecord"
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=r"record 0 is damaged \(checksum of its data\)"):
        records(path)


@pytest.mark.parametrize("cut", [1, 3, 10, 200])
def test_a_truncated_file_is_named(tmp_path, cut):
    path = tmp_path / "a.tfrecord"
    path.write_bytes(RECORDED.read_bytes()[:-cut])
    with pytest.raises(ValueError, match=r"a\.tfrecord: truncated in record [23]"):
        records(path)


def test_a_truncated_header_is_named(tmp_path):
    path = tmp_path / "a.tfrecord"
    path.write_bytes(RECORDED.read_bytes() + b"\0\0\0")
    with pytest.raises(ValueError, match=r"a\.tfrecord: truncated in record 4"):
        records(path)


def test_a_damaged_length_is_named(tmp_path):
    raw = bytearray(RECORDED.read_bytes())
    raw[2] ^= 1
    path = tmp_path / "a.tfrecord"
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=r"a\.tfrecord: record 0 is damaged"):
        records(path)
