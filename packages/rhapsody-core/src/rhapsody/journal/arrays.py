"""Arrays of NumPy and tables of pandas in parts that do not change with how they are kept."""

from __future__ import annotations

import sys
from typing import Any


def parts_of(value: Any) -> tuple[Any, ...] | None:
    """What an array or a table consists of, `None` for anything else."""
    library = str(type(value).__module__).partition(".")[0]
    if library == "pandas":
        return _table(value)
    return _array(value) if library == "numpy" else None


def is_array(value: object) -> bool:
    """Return whether it is an array of NumPy's, or of a class derived from that."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray)


def _array(value: Any) -> tuple[Any, ...] | None:
    numpy: Any = sys.modules["numpy"]
    if type(value) is not numpy.ndarray and not isinstance(value, numpy.generic):
        return None
    array = numpy.asarray(value)
    turned = array.flags.fnc  # in Fortran's order, which `ravel("K")` shows
    metadata = dict(array.dtype.metadata or {}) or None
    about: Any = repr((array.dtype.str, array.dtype.names, array.shape, turned)).encode()
    if metadata is not None:
        about = about, metadata
    if array.dtype.names is not None:  # there may be rubbish between its fields
        offsets = [array.dtype.fields[name][1] for name in array.dtype.names]
        return about, offsets, [array[name] for name in array.dtype.names]
    if array.dtype.hasobject or array.dtype.kind in "SU":  # texts may name files
        return about, array.ravel().tolist()
    if array.dtype.char in "gG":  # there is rubbish in long doubles
        return about, repr(array.astype(str).tolist()).encode()
    if not array.nbytes:
        return (about,)
    return about, numpy.ascontiguousarray(array).reshape(-1).view("u1").data


def _table(value: Any) -> tuple[Any, ...] | None:
    pandas: Any = sys.modules["pandas"]
    if isinstance(value, pandas.DataFrame):
        columns = [value.iloc[:, number].array for number in range(value.shape[1])]
        return value.columns, value.index, columns, value.attrs, repr(value.flags)
    if isinstance(value, pandas.Series):
        return value.name, value.index, value.array, value.attrs, repr(value.flags)
    if isinstance(value, pandas.MultiIndex):
        return list(value.names), list(value.levels), list(value.codes)
    if isinstance(value, pandas.RangeIndex):
        return value.name, value.start, value.stop, value.step
    if isinstance(value, pandas.Index):
        return value.name, value.array, getattr(value, "freqstr", None)
    if isinstance(value, pandas.Categorical):
        return value.categories, value.codes, value.ordered
    if not isinstance(value, pandas.api.extensions.ExtensionArray):
        return None
    about = str(value.dtype).encode()
    if isinstance(value, pandas.arrays.NumpyExtensionArray):
        return about, value.to_numpy()
    if value.dtype.kind in "OSU":  # texts may name files
        return about, value.to_numpy(object)
    if value.dtype.kind == "f" and hasattr(value.dtype, "numpy_dtype"):  # zeros have signs
        return about, value.to_numpy(value.dtype.numpy_dtype, na_value=0), value.isna()
    return about, pandas.util.hash_array(value).data
