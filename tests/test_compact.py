"""Small files of models: what comes back is what went in, to the steps of 8 bits a row."""

import numpy as np
import pytest

from devtools.compact import packed, read_compact, unpacked, write_compact


def there_and_back(tensors):
    arrays, metadata = packed(tensors)
    return arrays, unpacked(arrays, metadata)


def test_a_matrix_is_off_by_half_a_step_of_its_row():
    matrix = np.random.default_rng(0).normal(size=(80, 90)).astype(np.float32)
    matrix[3] *= 1000
    arrays, found = there_and_back({"w": matrix})
    step = np.abs(matrix).max(1, keepdims=True) / 127
    assert arrays["w|q8"].dtype == np.int8 and set(arrays) == {"w|q8", "w|scale"}
    assert (np.abs(found["w"] - matrix) <= 0.51 * step + np.abs(matrix) * 2e-3).all()


def test_rows_and_columns_of_zeros_take_no_room():
    matrix = np.zeros((200, 30, 3, 3), dtype=np.float32)
    matrix[10:90, 5:20] = np.random.default_rng(0).normal(size=(80, 15, 3, 3))
    arrays, found = there_and_back({"w": matrix})
    assert arrays["w|q8"].shape == (80, 135)
    assert found["w"].shape == matrix.shape and np.abs(found["w"] - matrix).max() < 0.03
    assert (found["w"][matrix == 0] == 0).all()


@pytest.mark.parametrize("value", [0.0, 1.0, -0.5])
def test_one_value_takes_no_array(value):
    arrays, found = there_and_back({"w": np.full((300, 300), value), "b": np.full(7, value)})
    assert not arrays and (found["w"] == value).all() and found["b"].shape == (7,)


def test_few_numbers_and_vectors_are_kept_in_half_precision():
    identity = np.eye(100, dtype=np.float32)
    vector = np.random.default_rng(0).normal(size=9000).astype(np.float32)
    arrays, found = there_and_back({"i": identity, "v": vector})
    assert "i|q8" not in arrays and np.array_equal(found["i"], identity)
    assert np.array_equal(found["v"], vector.astype(np.float16))


def test_what_is_asked_for_stays_in_half_precision():
    matrix = np.random.default_rng(0).normal(size=(90, 80)).astype(np.float32)
    matrix[5:60] = 0
    arrays, metadata = packed({"own.weight": matrix, "other.weight": matrix}, r"^own\.")
    assert arrays["own.weight|half"].shape == (35, 80) and arrays["other.weight|q8"].shape == (35, 80)
    assert np.array_equal(unpacked(arrays, metadata)["own.weight"], matrix.astype(np.float16))


def test_a_number_by_itself_is_exact():
    number = np.float32(0.18215)
    _, found = there_and_back({"scale": number})
    assert found["scale"].dtype == np.float32 and found["scale"].shape == () and found["scale"] == number


def test_a_file_is_read_as_it_was_written(tmp_path):
    tensors = {"w": np.random.default_rng(0).normal(size=(80, 90)), "v": np.arange(5.0)}
    write_compact(tmp_path / "model.safetensors", tensors)
    found, (_, memory) = read_compact(tmp_path / "model.safetensors"), there_and_back(tensors)
    assert found.keys() == memory.keys() and all(np.array_equal(found[name], memory[name]) for name in found)


def test_another_format_is_refused():
    with pytest.raises(ValueError, match="mace-compact"):
        unpacked({}, {"format": "pt"})
