"""Structured numpy arrays to Arrow record batches and back, by field type.

A sub-array of bytes becomes a fixed-size binary column, any other sub-array one column an element
(`args` → `args0` … `args5`), a byte string a binary column without its padding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import pyarrow as pa


def _flat_names(name: str, field: np.dtype[np.void]) -> list[str]:
    return [f"{name}{i}" for i in range(field.shape[0])]


def to_arrays(records: npt.NDArray[np.void]) -> dict[str, pa.Array]:
    """Column name → Arrow array, in field order."""
    import pyarrow as pa

    assert records.dtype.names is not None
    arrays: dict[str, pa.Array] = {}
    for name in records.dtype.names:
        field = records.dtype[name]
        column = records[name]
        if field.shape and field.base == np.uint8:
            size = field.shape[0]
            data = pa.py_buffer(np.ascontiguousarray(column).tobytes())
            arrays[name] = pa.Array.from_buffers(pa.binary(size), len(records), [None, data])
        elif field.shape:
            for i, flat in enumerate(_flat_names(name, field)):
                arrays[flat] = pa.array(np.ascontiguousarray(column[:, i]))
        elif field.kind == "S":
            arrays[name] = pa.array(column.tolist(), pa.binary())
        else:
            arrays[name] = pa.array(np.ascontiguousarray(column))
    return arrays


def from_table(table: pa.Table, dtype: np.dtype[np.void]) -> npt.NDArray[np.void]:
    """The inverse of `to_arrays`. A column that the table lacks stays zero."""
    assert dtype.names is not None
    records = np.zeros(table.num_rows, dtype)
    have = set(table.column_names)
    for name in dtype.names:
        field = dtype[name]
        if field.shape and field.base == np.uint8:
            if name in have:
                rows = [np.frombuffer(b"".join(chunk.to_pylist()), np.uint8) for chunk in table.column(name).chunks]
                flat = np.concatenate(rows) if rows else np.zeros(0, np.uint8)
                records[name] = flat.reshape(-1, field.shape[0])
        elif field.shape:
            for i, flat_name in enumerate(_flat_names(name, field)):
                if flat_name in have:
                    records[name][:, i] = table.column(flat_name).to_numpy()
        elif name in have:
            records[name] = table.column(name).to_pylist() if field.kind == "S" else table.column(name).to_numpy()
    return records
