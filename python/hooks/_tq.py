"""What the patched llama_cpp calls: cache types by name, and the native reason of a failure.

Installed as llama_cpp._tq. Uses llama_cpp's bindings only.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Iterator

# The types that llama.cpp's programs accept for a cache, next to the TQ types, as values of enum ggml_type.
_UNQUANTIZED = {"f32": 0, "f16": 1, "bf16": 30}
_QUANTIZED = {"q8_0": 8, "q5_1": 7, "q5_0": 6, "q4_1": 3, "q4_0": 2, "iq4_nl": 20}

_GGML_LOG_LEVEL_ERROR = 4


class _TypeInfo(ctypes.Structure):
    _fields_ = (  # struct tq_type_info of tq.h
        ("name", ctypes.c_char_p),
        ("id", ctypes.c_int),
        ("bits", ctypes.c_int),
        ("block_bytes", ctypes.c_size_t),
    )


def tq_types(lib: ctypes.CDLL) -> dict[str, int]:
    """Name and enum ggml_type value of the TQ types, as the native library reports them.

    Empty for a library without them, which LLAMA_CPP_LIB_PATH may name.
    """
    type_info = getattr(lib, "tq_type_info", None)
    if type_info is None:
        return {}
    type_info.argtypes = (ctypes.c_int,)
    type_info.restype = ctypes.POINTER(_TypeInfo)
    types: dict[str, int] = {}
    while info := type_info(len(types)):
        types[info.contents.name.decode()] = info.contents.id
    return types


def type_constants(lib: ctypes.CDLL) -> dict[str, int]:
    """GGML_TYPE_TQ4_0 and so on, for the namespace of llama_cpp."""
    return {f"GGML_TYPE_{name.upper()}": value for name, value in tq_types(lib).items()}


def cache_types() -> dict[str, int]:
    """Name and enum ggml_type value of every type that a KV cache can have."""
    from llama_cpp import llama_cpp

    return _UNQUANTIZED | _QUANTIZED | tq_types(llama_cpp._lib)


def cache_type(value: int | str, parameter: str) -> int:
    """The enum ggml_type value of a cache type given by name or by value.

    Raises ValueError, naming `parameter`, for anything that a KV cache cannot have.
    """
    types = cache_types()
    text = str(value).strip().lower()
    if text in types:
        return types[text]
    if text.isdecimal() and int(text) in types.values():
        return int(text)
    raise ValueError(f"{parameter}: {value!r} is not a KV cache type; use one of {', '.join(types)}")


def needs_flash_attention(type_v: int | str | None, type_k: int | str | None = None) -> bool:
    """Whether to turn flash attention on for caches of these types, None for the default.

    A quantised V cache works with it only, and TQ types of either cache are slow without it.
    """
    from llama_cpp import llama_cpp

    v_quantised = type_v is not None and cache_type(type_v, "type_v") not in _UNQUANTIZED.values()
    k_tq = type_k is not None and cache_type(type_k, "type_k") in tq_types(llama_cpp._lib).values()
    return v_quantised or k_tq


def guarded(lib: ctypes.CDLL, name: str, argtypes: list, restype: object) -> ctypes._CFuncPtr:
    """The function of that name; RuntimeError for what C++ throws in it or ggml would end the process for.

    As it is in a library without such functions, which LLAMA_CPP_LIB_PATH may name, and in libmtmd.
    """
    find = getattr(lib, "llama_tq_guarded", None)
    if find is None:
        return getattr(lib, name)
    find.argtypes, find.restype = (ctypes.c_char_p,), ctypes.c_void_p
    address = find(name.encode())
    if not address:
        return getattr(lib, name)
    failure = lib.llama_tq_failure
    failure.argtypes, failure.restype = (), ctypes.c_char_p

    def check(result: object, function: object, arguments: tuple) -> object:
        if reason := failure():
            raise RuntimeError(f"{name}: {reason.decode('utf-8', 'replace')}")
        return result

    function = ctypes.CFUNCTYPE(restype, *argtypes)(address)
    function.errcheck = check
    return function


_capture_lock = threading.Lock()


@contextlib.contextmanager
def native_errors() -> Iterator[list[str]]:
    """Collects what llama.cpp logs as an error in this thread; the log goes where it went before as well."""
    from llama_cpp import llama_cpp

    errors: list[str] = []
    thread = threading.get_ident()
    previous = llama_cpp.llama_log_callback()
    previous_data = ctypes.c_void_p()

    @llama_cpp.llama_log_callback
    def capture(level: int, text: bytes, _: ctypes.c_void_p) -> None:
        if level == _GGML_LOG_LEVEL_ERROR and threading.get_ident() == thread:
            errors.append(text.decode("utf-8", "replace").strip())
        previous(level, text, previous_data)

    with _capture_lock:
        llama_cpp.llama_log_get(ctypes.byref(previous), ctypes.byref(previous_data))
        llama_cpp.llama_log_set(capture, ctypes.c_void_p())
        try:
            yield errors
        finally:
            llama_cpp.llama_log_set(previous, previous_data)


def with_reason(message: str, errors: list[str]) -> str:
    """`message`, and the native errors if there are any."""
    return ": ".join([message, "; ".join(errors)]) if errors else message
