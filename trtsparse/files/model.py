"""An ONNX model whose weights stay where they are, embedded or external, until one of them is asked for."""

from __future__ import annotations

import contextlib
import functools
import mmap
import os
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError

from trtsparse.errors import ExternalDataError, ModelError, ModelNotFoundError, OutputError
from trtsparse.files import atomic, tensor
from trtsparse.files.copies import beside, copy_file, load, names_beside, ranges, same_entry, same_file
from trtsparse.files.protobuf import Buffer, rewrite_tensors
from trtsparse.files.tensor import TensorRef, normal_location

__all__ = ["OnnxModel"]

_MADE_FROM_ONE = "give the ONNX model it was made from"
_EXPORT = "export the PyTorch model to ONNX first: torch.onnx.export"
_ANOTHER = "give a file written by an ONNX exporter"
_OTHER_FILES = (
    (b"ftrt", b"", "a plan of TensorRT", _MADE_FROM_ONE),
    (b"vtrt", b"", "a plan of TensorRT-RTX", _MADE_FROM_ONE),
    (b"PK\x03\x04", b"/data", "a zip archive, such as a checkpoint of PyTorch", _EXPORT),
    (b"PK\x03\x04", b"", "a zip archive, such as a saved engine of cuSPARSELt", _MADE_FROM_ONE),
    (b"\x80\x02", b"", "a pickle, such as an old checkpoint of PyTorch", _EXPORT),
    (b"version https://git-lfs", b"", "a Git LFS pointer", "fetch the file itself: git lfs pull"),
    (b"\x89PNG", b"", "a PNG image", _ANOTHER),
    (b"\xff\xd8\xff", b"", "a JPEG image", _ANOTHER),
    (b"\x7fELF", b"", "a program or shared library", _ANOTHER),
    (b"\x89HDF", b"", "an HDF5 file", _ANOTHER),
    (b"\x1f\x8b", b"", "a gzip archive", "unpack it"),
    (b"{", b"", "JSON text", _ANOTHER),
    (b"<", b"", "XML or HTML text", _ANOTHER),
)
"""Their first bytes, with which no ONNX model begins; what else is near the beginning; what they are; what to do."""
_HEAD = 256


class OnnxModel:
    """A model on disk or in memory.

    ``proto`` is the skeleton: the whole model except the data of its larger tensors, so a 4 GB model opens in the
    time that its graph takes to parse. `read` maps one tensor's data. Reading is thread-safe.

    Args:
        files: Where each part is: "" is the model file, the other keys are the ``location`` of external data files.
            Values are paths, or the bytes themselves.
        name: What error messages call the model.
        folder: Where external files not in ``files`` are looked for; None when there is no such place.
        proto: The skeleton, where it is known already.

    Raises:
        ModelError: Not an ONNX model.
    """

    def __init__(
        self,
        files: Mapping[str, Path | Buffer],
        *,
        name: str,
        folder: Path | None = None,
        proto: onnx.ModelProto | None = None,
    ) -> None:
        self.files = dict(files)
        self.name = name
        self.folder = folder
        self.proto = proto or _parse_skeleton(self.files[""], name)
        self._holes: dict[tuple[str, int], np.ndarray] = {}  # of a copy: originals of what was not copied

    @classmethod
    def open(cls, source: str | os.PathLike[str] | bytes | onnx.ModelProto | OnnxModel) -> OnnxModel:
        """Open a path, serialized bytes, a ModelProto, or an OnnxModel (returned as it is).

        Raises:
            ModelNotFoundError: There is no such file.
            ModelError: A folder, an empty file, not ONNX (a plan and a saved engine are called so), or truncated.

        Example:
            >>> from onnx import parser
            >>> text = '<ir_version: 8, opset_import: ["": 17]> g (float[4] x) => (float[4] y) { y = Relu(x) }'
            >>> OnnxModel.open(parser.parse_model(text)).proto.graph.node[0].op_type
            'Relu'
        """
        if isinstance(source, OnnxModel):
            return source
        if isinstance(source, onnx.ModelProto):
            return cls({"": source.SerializeToString()}, name="ModelProto")
        if isinstance(source, (bytes, bytearray, memoryview)):
            return cls({"": bytes(source)}, name="bytes")
        path = Path(source)
        _check_readable(path)
        return cls({"": path}, name=str(path), folder=path.parent)

    @property
    def path(self) -> Path | None:
        """The model file, or None for a model in memory."""
        main = self.files[""]
        return main if isinstance(main, Path) else None

    def ref(self, proto: onnx.TensorProto) -> TensorRef | None:
        """Where the data of a tensor of the skeleton are; None when the skeleton itself holds them.

        Raises:
            ExternalDataError: The external file is missing, too short, or outside the model's folder.
            ModelError: Dims and data disagree, or the data type is unknown.
        """
        shape = tuple(proto.dims)
        where = f"tensor {proto.name!r} in {self.name}"
        try:
            expected = tensor.packed_nbytes(proto.data_type, shape)
        except ModelError as error:
            raise ModelError(error.what, where=where, got=error.got) from error
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError("a tensor has an unknown data type", where=where, got=proto.data_type) from error
        inside = tensor.stripped_location(proto)
        if inside is not None:
            encoding, offset, nbytes = inside
            location = ""
        elif proto.data_location == onnx.TensorProto.EXTERNAL:
            encoding = "raw_data"
            location, offset, nbytes = self._external(proto, expected, where)
        else:
            _check_inline(proto, where)
            return None
        if encoding == "raw_data" and nbytes != expected:
            raise ModelError(
                "a tensor's dims and data disagree",
                where=where,
                got=f"{nbytes} bytes",
                expected=f"{expected} bytes for dims {list(shape)} of {tensor.dtype_name(proto.data_type)}",
                fix="export the model again",
            )
        return TensorRef(proto.name, location, offset, nbytes, encoding, proto.data_type, shape)

    def read(self, ref: TensorRef) -> np.ndarray:
        """The tensor's elements, read-only and mapped, not loaded; they live as long as the array.

        Returns:
            An array of the tensor's shape and type. 4-bit types: the packed bytes, uint8 ``((size + 1) // 2,)``.
        """
        return _elements(self._bytes(ref, "r"), ref)

    def array(self, proto: onnx.TensorProto) -> np.ndarray:
        """The value of any tensor of the skeleton; 4-bit types come unpacked, as ``ml_dtypes`` types."""
        ref = self.ref(proto)
        if ref is None:
            return onnx.numpy_helper.to_array(proto)
        values = self.read(ref)
        if not ref.packed:
            return values
        whole = onnx.TensorProto(data_type=ref.data_type, dims=ref.shape, raw_data=values.tobytes())
        return onnx.numpy_helper.to_array(whole)

    @contextlib.contextmanager
    def edit(self, ref: TensorRef) -> Iterator[np.ndarray]:
        """Give a tensor's elements for changing in place; only a model from `copying` may be edited.

        Raises:
            ModelError: A varint-encoded element would need more bytes than it has.
        """
        original = self._holes.pop(ref.key, None)
        if original is not None:
            values = original.copy()
            yield _elements(values, ref)
            with Path(self.files[ref.location]).open("rb+") as file:  # type: ignore[arg-type]  # holes are in files
                file.seek(ref.offset)
                file.write(values)
            return
        stored = self._bytes(ref, "r+")
        if ref.encoding == "raw_data":
            yield _elements(stored, ref)
            return
        before = tensor.decode_varints(stored, ref)
        values = before.copy()
        yield values
        tensor.rewrite_varints(stored, before, values, name=ref.name)

    @contextlib.contextmanager
    def copying(self, target: Path | None, *, replaced: Collection[TensorRef] = ()) -> Iterator[OnnxModel]:
        """Give an editable copy, which becomes ``target`` when the block ends without an error.

        Args:
            target: The new model file (its own path is fine), or None for a copy in memory. External data files keep
                their names, unless other files beside ``target`` have them: then they are named after ``target``.
                Only those of a model that ``target`` replaces are replaced.
            replaced: Tensors that the block will `edit`, every one: in files they are written once, then, and not
                copied before. Otherwise a large file would go to the disk twice.

        Yields:
            The copy. Every byte equals the original's; only names of external files may differ.

        Raises:
            OutputError: ``target`` cannot be written, or is one of the model's data files; nothing is left behind.
        """
        externals = self._external_locations()
        if target is None:
            copies = {key: load(self._file(key)) for key in ("", *externals)}
            yield OnnxModel(copies, name=self.name, folder=self.folder, proto=self.proto)
            return
        replaceable = self._replaceable(externals, target)
        with (
            names_beside(target, externals, replaceable=replaceable) as names,
            atomic.replacing_all([*(beside(target, new) for new in names.values()), target]) as (*temporaries, main),
        ):
            for location, temporary in zip(externals, temporaries, strict=True):
                copy_file(self._file(location), temporary, ranges(replaced, location))
            renamed = {old: new for old, new in names.items() if old != new}
            if renamed:
                main.write_bytes(rewrite_tensors(load(self.files[""]), functools.partial(tensor.relocate, renamed)))
            else:
                copy_file(self.files[""], main, ranges(replaced, ""))
            files = {**dict(zip(names.values(), temporaries, strict=True)), "": main}
            copy = OnnxModel(files, name=self.name, proto=None if renamed else self.proto)
            copy._holes = {
                (names.get(ref.location, ""), ref.offset): self._bytes(ref, "r")
                for ref in replaced
                if ref.encoding == "raw_data" and (ref.location or not renamed)
            }
            yield copy

    def save(self, path: str | os.PathLike[str]) -> OnnxModel:
        """Write the model, with its external data files beside it, and return it opened there.

        Raises:
            OutputError: The path cannot be written; nothing is left behind.
        """
        with self.copying(Path(path)):
            pass
        return OnnxModel.open(path)

    def load(self) -> onnx.ModelProto:
        """The whole model with all data in memory, as ``onnx.load`` gives it."""
        main = self.files[""]
        model: onnx.ModelProto = onnx.ModelProto.FromString(bytes(load(main)))
        for proto in _tensors(model):
            if proto.data_location == onnx.TensorProto.EXTERNAL:
                ref = self.ref(proto)
                if ref is not None:
                    proto.raw_data = self.read(ref).tobytes()
                del proto.external_data[:]
                proto.data_location = onnx.TensorProto.DEFAULT
        return model

    def external_files(self) -> tuple[Path, ...]:
        """The external data files that the model uses, on disk."""
        found = (self._file(location) for location in self._external_locations())
        return tuple(file for file in found if isinstance(file, Path))

    def _file(self, location: str) -> Path | Buffer:
        return self.files[location] if location in self.files else self._inside(location)

    def _inside(self, location: str) -> Path:
        """The external file of this name; it must lie below the model's folder, or below that of a link's file."""
        folders = [] if self.folder is None else [self.folder]
        if folders and self.path is not None and self.path.is_symlink():
            folders.append(self.path.resolve().parent)  # caches keep all files in one folder, and links elsewhere
        return _inside(folders, location, self.name)

    def _source(self, location: str) -> Path | Buffer:
        """Where an external file is on disk, for a copy in memory too."""
        file = self._file(location)
        return file if isinstance(file, Path) or self.folder is None else self.folder / location

    def _external(self, proto: onnx.TensorProto, expected: int, where: str) -> tuple[str, int, int]:
        """Location, offset and length of an external tensor, checked against the file."""
        entries = {entry.key: entry.value for entry in proto.external_data}
        location = normal_location(str(entries.get("location", "")))  # protobuf gives bytes for what is not UTF-8
        try:
            offset = int(entries.get("offset", "0") or 0)
            nbytes = int(entries.get("length", "0") or 0) or expected
        except ValueError as error:
            raise ExternalDataError("external data has a bad offset or length", where=where, got=entries) from error
        try:
            file = self._file(location) if location else self._inside(location)
        except ExternalDataError as error:
            error.add_note(where) if hasattr(error, "add_note") else None
            raise
        available = file.stat().st_size if isinstance(file, Path) else len(file)
        if offset < 0 or nbytes < 0 or offset + nbytes > available:
            raise ExternalDataError(
                "an external data file is too short",
                where=f"{where}, file {location!r}",
                got=f"{available} bytes",
                expected=f"at least {offset + nbytes} bytes",
                fix="copy or export the model's data file again",
            )
        return location, offset, nbytes

    def refs(self) -> Iterator[TensorRef]:
        """Where every tensor is that the skeleton does not hold itself; tied ones come once for each name."""
        found = (self.ref(proto) for proto in _tensors(self.proto))
        return (ref for ref in found if ref is not None)

    def _external_locations(self) -> list[str]:
        """Locations in the order in which the model first names them."""
        return list(dict.fromkeys(ref.location for ref in self.refs() if ref.location))

    def _replaceable(self, externals: list[str], target: Path) -> tuple[Path, ...]:
        """The data files of the model at ``target``, without those that this one needs when it stays."""
        sources = [self._source(location) for location in externals]
        if any(same_file(source, target) for source in sources):
            raise OutputError(
                "the output would replace the model's own data file",
                where=target,
                fix="give another path, or the model's own to replace both",
            )
        if not externals or not target.exists():
            return ()
        try:
            old = OnnxModel.open(target).external_files()
        except ModelError:
            return ()  # what is no whole model owns no files
        if self.path is not None and same_entry(self.path, target):
            return old
        return tuple(file for file in old if not any(same_file(source, file) for source in sources))

    def _bytes(self, ref: TensorRef, mode: str) -> np.ndarray:
        file = self._file(ref.location)
        if ref.nbytes == 0:
            return np.zeros(0, np.uint8)
        if isinstance(file, Path):
            return _mapped(file, ref, writable=mode == "r+")
        view = np.frombuffer(file, np.uint8, ref.nbytes, ref.offset)
        if mode == "r":
            view.flags.writeable = False
        return view


def _parse_skeleton(main: Path | Buffer, name: str) -> onnx.ModelProto:
    try:
        with _view(main) as data:
            _check_kind(bytes(data[:_HEAD]))
            skeleton: onnx.ModelProto = onnx.ModelProto.FromString(rewrite_tensors(data, tensor.strip))
    except DecodeError as error:
        raise ModelError("not an ONNX file", where=name, got=str(error)) from error
    except RecursionError as error:
        raise ModelError("the model's graphs are nested too deeply", where=name) from error
    except ModelError as error:
        place = f"{name}, {error.where}" if error.where else name
        raise type(error)(error.what, where=place, got=error.got, expected=error.expected, fix=error.fix) from error
    if not skeleton.HasField("graph") or not skeleton.graph.node or not skeleton.opset_import:
        raise ModelError(
            "not an ONNX model",
            where=name,
            got="no graph with nodes and opset imports",
            fix="give a file written by an ONNX exporter",
        )
    return skeleton


def _check_kind(head: bytes) -> None:
    for start, inside, kind, fix in _OTHER_FILES:
        if head.startswith(start) and inside in head:
            raise ModelError(f"this is {kind}, not an ONNX model", fix=fix)


@contextlib.contextmanager
def _view(main: Path | Buffer) -> Iterator[Buffer]:
    if not isinstance(main, Path):
        yield main
        return
    with main.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        view = memoryview(mapped)
        try:
            yield view
        finally:
            view.release()


def _mapped(file: Path, ref: TensorRef, *, writable: bool) -> np.ndarray:
    """The tensor's bytes, mapped; what ``np.memmap`` does, without its cost of a tenth of a millisecond."""
    start = ref.offset - ref.offset % mmap.ALLOCATIONGRANULARITY
    access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
    with file.open("rb+" if writable else "rb") as opened:
        mapped = mmap.mmap(opened.fileno(), ref.offset + ref.nbytes - start, access=access, offset=start)
    return np.frombuffer(mapped, np.uint8, ref.nbytes, ref.offset - start)


def _check_readable(path: Path) -> None:
    try:
        status = path.stat()
        if stat.S_ISREG(status.st_mode):
            with path.open("rb") as file:
                file.read(1)
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:  # ValueError: a NUL in the path
        raise ModelNotFoundError("there is no such file", where=path) from error
    except OSError as error:
        raise ModelError("the file cannot be read", where=path, got=error.strerror) from error
    if stat.S_ISDIR(status.st_mode):
        raise ModelError("the path is a folder, not an ONNX file", where=path)
    if not stat.S_ISREG(status.st_mode):
        raise ModelError("the path is a pipe or device, not an ONNX file", where=path)
    if not status.st_size:
        raise ModelError("the file is empty", where=path)


def _inside(folders: Sequence[Path], location: str, name: str) -> Path:
    """The external file ``location`` of a model in the first folder; a link there may lead into the others only."""
    where = f"file {location!r} of {name}"
    if not folders:
        raise ExternalDataError(
            "the model's weights are in a file that cannot be found from a model in memory",
            where=where,
            fix="give the model's path instead, or load it with its data",
        )
    relative = Path(location)
    path = folders[0] / relative
    try:
        inside = any(path.resolve().is_relative_to(folder.resolve()) for folder in folders)
        exists = path.is_file()
    except (OSError, ValueError) as error:
        raise ExternalDataError(
            "external data has a name that no file can have", where=where, got=f"{type(error).__name__}: {error}"
        ) from error
    if not location or relative.is_absolute() or ".." in relative.parts or not inside:
        raise ExternalDataError(
            "external data lies outside the model's folder",
            where=where,
            got=location or "an empty location",
            expected="a relative path below the model's folder, not through a symbolic link that leaves it",
            fix="move the data file beside the model and save the model again",
        )
    if not exists:
        raise ExternalDataError(
            "an external data file is missing", where=where, got=path, fix="copy the data file beside the model"
        )
    return path


def _check_inline(proto: onnx.TensorProto, where: str) -> None:
    """Small vectors keep their data in the skeleton, and so does a tensor that has none."""
    try:
        onnx.numpy_helper.to_array(proto)
    except (ValueError, TypeError) as error:
        raise ModelError("a tensor's dims and data disagree", where=where, got=str(error)) from error


def _elements(stored: np.ndarray, ref: TensorRef) -> np.ndarray:
    if ref.encoding != "raw_data":
        return tensor.decode_varints(stored, ref)
    return stored if ref.packed else stored.view(ref.dtype).reshape(ref.shape)


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of a model that may be large: initialisers and attributes, in subgraphs and functions too."""
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        yield from _node_tensors(function.node)
        yield from _attribute_tensors(function.attribute_proto)


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: object) -> Iterator[onnx.TensorProto]:
    for node in nodes:  # type: ignore[attr-defined]
        yield from _attribute_tensors(node.attribute)


def _attribute_tensors(attributes: Iterable[onnx.AttributeProto]) -> Iterator[onnx.TensorProto]:
    for attribute in attributes:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        for graph in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
            yield from _graph_tensors(graph)
