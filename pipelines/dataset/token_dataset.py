"""Random access to tokenized datasets: `TokenDataset`, what the language model's loader reads.

Opening reads `dataset.json` and the per-shard index (16 bytes per cut), or for many shards one joined index
(`pipelines.dataset.joined_index`); tokens are read from memory-mapped files, the tars or the packed ones, so a corpus
of any size opens in bounded memory. Where there are more tars than can be mapped, the others are read cut by cut. Files
behind a URL are first downloaded into a local cache: the index when the dataset is opened, a shard when one of its cuts
is read. Threads may read from one dataset at the same time.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.dataset.cache import CachedDataset, MissingFile
from pipelines.dataset.joined_index import JoinedIndex, JoinedShards, OpenedFolder, identity_of, is_large
from pipelines.dataset.kept import Arrays, kept_arrays
from pipelines.dataset.mapped_shards import PackedCodes, TarShard, mappable
from pipelines.dataset.open_files import most_mapped
from pipelines.format.description import CodecEntry, Description, read_description
from pipelines.format.layout import Layout
from pipelines.format.member_ids import original_id
from pipelines.format.packed import PackedShard, group_bytes, unpack_cuts
from pipelines.sources.cuts import read_json_lines
from pipelines.storage.folders import Folder, RemotePath, dataset_folder
from tokenizer.errors import InputError

ITEM = 2  # bytes of a token
KEPT_FROM = 100_000  # cuts: what is read from all files of cuts of so many is kept
PARSED_SHARDS = 4  # shards whose cut ids are held at a time
MAPPED_SHARDS = most_mapped()  # shards mapped at a time


class TokenDataset:
    """One or several tokenized datasets as one sequence of cuts, in shard order.

    Args:
        out: the folder (or URL) written by `focalstream tokenize`, or several, which must share the codec fingerprint.
        cache: local folder that files behind URLs are downloaded to; None: the user's cache.
        packed: read tokens from the packed files (True) or from the tars (False); None: from the packed ones where a
            URL has them, or where a folder has no tars any more.

    Attributes:
        lengths: int64 [N], tokens of each cut.
        places: each of `out`, as it was given.
        folder_begins: the first cut of each of `out`, then N.

    Raises:
        InputError: a folder is not a finished dataset, is damaged, has no packed files although they were asked for, or
            was written by another codec than the first; or a URL cannot be read.
    """

    def __init__(
        self,
        out: str | Folder | Sequence[str | Folder],
        cache: Path | None = None,
        packed: bool | None = None,
    ) -> None:
        folders = [out] if isinstance(out, (str, Path, RemotePath)) else list(out)
        if not folders:
            raise InputError("no tokenized dataset was given: expected at least one folder")
        self.places = [str(folder) for folder in folders]
        self._codec: CodecEntry | None = None
        self._lock = threading.Lock()
        self._maps: OrderedDict[int, memoryview] = OrderedDict()
        self._ids: OrderedDict[int, list[str]] = OrderedDict()
        self._shards: Sequence[TarShard | PackedCodes]
        self._remotes: Sequence[CachedDataset | None]  # of each shard
        self._unmapped: JoinedShards | None = None  # reads tars without a map
        places = [dataset_folder(str(folder)) for folder in folders]
        on_disk = [place for place in places if isinstance(place, Path)]
        self._local: list[Path] = []  # where the `dataset.json` of each folder is
        if len(on_disk) == len(places) and is_large(on_disk):
            joined = JoinedIndex(on_disk, packed, lambda folder: _opened(Layout(folder), None, packed))
            for folder, codec in zip(folders, joined.codecs, strict=True):
                self._adopt_codec(folder, codec, folders[0])
            self._local = on_disk
            self._shards, self._remotes = joined.shards, [None] * len(joined.shards)
            counts, folder_shards = joined.counts, joined.folder_shards
            self._packed = joined.shards.packed
            if len(joined.shards) > MAPPED_SHARDS and not self._packed.any():
                self._unmapped = joined.shards
            self.lengths, self._begins = joined.lengths, joined.begins
        else:
            all_shards: list[TarShard | PackedCodes] = []
            begins, lengths, remotes, folder_shards = [], [], [], [0]
            for folder, place in zip(folders, places, strict=True):
                remote = CachedDataset(place, cache) if isinstance(place, RemotePath) else None
                layout = remote.layout if remote else Layout(place)
                opened = _opened(layout, remote, packed)
                self._local.append(mappable(layout.out))
                self._adopt_codec(folder, opened.codec, folders[0])
                begins += opened.begins
                lengths += opened.lengths
                all_shards += opened.shards
                remotes += [remote] * len(opened.shards)
                folder_shards.append(len(all_shards))
            counts = np.array([len(found) for found in lengths], np.int64)
            self._shards, self._remotes = all_shards, remotes
            self._packed = np.array([shard.packed for shard in all_shards], bool)
            empty = np.zeros(0, np.int64)
            self.lengths = np.concatenate([empty, *lengths])
            self._begins = np.concatenate([empty, *begins])  # bytes in the shard's map
        self._first_cut = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)  # of each shard, then the total
        self.folder_begins: list[int] = self._first_cut[folder_shards].tolist()

    def _adopt_codec(self, folder: str | Folder, codec: CodecEntry, first: str | Folder) -> None:
        ours = self._codec = self._codec or codec
        if codec.fingerprint != ours.fingerprint:
            raise InputError(
                f"{folder} was tokenized by codec {codec.fingerprint[:12]} ({codec.name}), {first} by "
                f"{ours.fingerprint[:12]} ({ours.name}): their tokens mean different sounds; tokenize both with the "
                "same codec"
            )

    @property
    def codec_entry(self) -> CodecEntry:
        """The codec that made the tokens, from `dataset.json`."""
        assert self._codec is not None
        return self._codec

    @property
    def codec(self) -> dict[str, Any]:
        """`codec_entry` as a dictionary: name, fingerprint, rates, as in `dataset.json`."""
        return self.codec_entry.to_dict()

    @property
    def fingerprint(self) -> str:
        """Identity of the codec that wrote the tokens (hex sha256)."""
        return self.codec_entry.fingerprint

    @property
    def codebook_size(self) -> int:
        """Tokens are in [0, codebook_size)."""
        return self.codec_entry.codebook_size

    @property
    def token_rate(self) -> float:
        """Tokens per second of audio."""
        return self.codec_entry.token_rate

    def __len__(self) -> int:
        return len(self.lengths)

    def codes(self, i: int) -> np.ndarray:
        """The tokens of cut `i`: uint16 [T], a copy. Raises as `gather` does."""
        if not 0 <= i < len(self):
            raise IndexError(f"cut {i} of a dataset of {len(self)} cuts")
        return self.gather(np.array([i])).astype(np.uint16)

    def gather(self, cuts: np.ndarray, before: int = 0, after: int = 0) -> np.ndarray:
        """The tokens of many cuts one after another, with room around each.

        Args:
            cuts: int64 [n], cut numbers in [0, N), in any order.
            before, after: zeros to put before and after the tokens of each cut.

        Returns:
            uint16 [sum over the cuts of before + T + after], read-only.

        Raises:
            InputError: a shard is damaged: its size is not the one in `dataset.json`, or a token is outside the
                codebook. (Other damage inside a shard is found only by `focalstream verify`.)
        """
        parts = [
            self._gather(cuts[begin : begin + MAPPED_SHARDS], before, after)
            for begin in range(0, len(cuts), MAPPED_SHARDS)
        ]
        codes = parts[0] if len(parts) == 1 else np.concatenate([np.zeros(0, np.uint16), *parts])
        if codes.size and codes.max() >= self.codebook_size:
            raise self._out_of_range(cuts)
        return codes

    def _gather(self, cuts: np.ndarray, before: int, after: int) -> np.ndarray:
        """`gather` of at most as many cuts as shards can be mapped at a time."""
        shards = np.searchsorted(self._first_cut, cuts, side="right") - 1
        # Joining slices of memoryviews takes a third of the time of concatenating slices of arrays.
        pieces = self._pieces(cuts, shards, self._mapped(set(shards.tolist())))
        joined = bytes(ITEM * (before + after)).join([b"", *pieces, b""])
        return np.frombuffer(joined, "<u2")[after : len(joined) // ITEM - before]

    def _pieces(self, cuts: np.ndarray, shards: np.ndarray, maps: dict[int, memoryview]) -> list[memoryview]:
        """The tokens of each cut as little-endian uint16: views of the maps, or of what is unpacked from them."""
        lengths, begins, packed = self.lengths[cuts], self._begins[cuts], self._packed[shards]
        any_packed, bits = bool(packed.any()), self.codec_entry.bits_per_token
        sizes = np.where(packed, group_bytes(lengths, bits), ITEM * lengths) if any_packed else ITEM * lengths
        pieces = [
            maps[shard][begin:end] if shard in maps else self._read(shard, begin, end)
            for shard, begin, end in zip(shards.tolist(), begins.tolist(), (begins + sizes).tolist(), strict=True)
        ]
        if any_packed:
            chosen = np.flatnonzero(packed).tolist()
            unpacked = unpack_cuts([pieces[i] for i in chosen], lengths[packed], bits)
            for i, codes in zip(chosen, unpacked, strict=True):
                pieces[i] = codes
        return pieces

    def _read(self, shard: int, begin: int, end: int) -> memoryview:
        assert self._unmapped is not None
        return self._unmapped.read(shard, begin, end)

    def _mapped(self, shards: set[int]) -> dict[int, memoryview]:
        """The maps of some shards, without those that are to be read unmapped; remote files that are missing are
        downloaded first, many at a time."""
        with self._lock:
            return self._mapped_alone(shards)

    def _mapped_alone(self, shards: set[int]) -> dict[int, memoryview]:
        if self._unmapped is not None:  # a map would leave before it is used again
            room = MAPPED_SHARDS - len(self._maps)
            shards = {shard for shard in shards if shard in self._maps or (room := room - 1) >= 0}
        missing = [shard for shard in shards if shard not in self._maps]
        for remote in {id(found): found for shard in missing if (found := self._remotes[shard])}.values():
            own = [self._shards[shard] for shard in missing if self._remotes[shard] is remote]
            remote.fetch([shard.file for shard in own], [shard.entry for shard in own])
        return {shard: _recent(self._maps, shard, MAPPED_SHARDS, lambda n: self._shards[n].map()) for shard in shards}

    def _out_of_range(self, cuts: np.ndarray) -> InputError:
        """The error for a token of one of the cuts that is outside the codebook."""
        for cut in cuts.tolist():
            shard, row = self._locate(cut)
            maps = self._mapped({shard})
            (piece,) = self._pieces(np.array([cut]), np.array([shard]), maps)
            codes = np.frombuffer(piece, "<u2")
            if codes.size and codes.max() >= self.codebook_size:
                found = self._shards[shard]
                return InputError(
                    f"{found.file}: token {codes.max()} in cut {row} of the shard, but the codebook has "
                    f"{self.codebook_size}: the shard is damaged; `focalstream verify {found.layout.out}` lists what "
                    "is wrong, `focalstream repair` makes it again"
                )
        raise AssertionError("none of the cuts has such a token")

    def cut_id(self, i: int) -> str:
        """The id cut `i` had in the manifest it was tokenized from (of a folder with packed files alone, an id of more
        than 90 bytes is shortened)."""
        if not 0 <= i < len(self):
            raise IndexError(f"cut {i} of a dataset of {len(self)} cuts")
        shard, row = self._locate(i)
        ids = _recent(self._ids, shard, PARSED_SHARDS, self._read_ids)
        return ids[row]

    def _locate(self, i: int) -> tuple[int, int]:
        shard = int(np.searchsorted(self._first_cut, i, side="right")) - 1
        return shard, i - int(self._first_cut[shard])

    def cuts(self) -> Iterator[dict[str, Any]]:
        """What the shards say of each cut, as Lhotse has it (supervisions, custom fields), in order.

        Raises:
            MissingFile: a file of cuts is missing, as in a folder that keeps only packed files.
            InputError: a file of cuts cannot be read or is damaged.
        """
        for shard in range(len(self._shards)):
            path = self._cuts_file(shard)
            try:
                for _, cut in read_json_lines(str(path)):
                    yield cut
            except FileNotFoundError as error:
                raise MissingFile(
                    f"{path}: no such file, and only there stand the speakers, texts and other fields of the cuts; "
                    "copy shards/cuts.* from the dataset that this folder was copied from"
                ) from error
            except OSError as error:
                raise InputError(f"{path}: cannot be read ({error.strerror or error}); make it readable") from error

    def kept(self, name: str, make: Callable[[], Arrays]) -> Arrays:
        """Arrays that are made of `cuts`; of a large dataset, from the user's cache or put there.

        Args:
            name: of the way they are made, and what they depend on beside the dataset; part of a file name.
            make: called where they are not kept; by one process of the machine while the others wait.
        """
        if len(self) < KEPT_FROM:
            return make()
        return kept_arrays(f"{name}-{identity_of(self._local)[:32]}", make)

    def _cuts_file(self, shard: int) -> Path:
        found, remote = self._shards[shard], self._remotes[shard]
        path = mappable(found.layout.cuts_file(found.entry.shard))
        if remote:
            remote.fetch([path], [found.entry])
        return path

    def _read_ids(self, shard: int) -> list[str]:
        found, path = self._shards[shard], self._cuts_file(shard)
        if found.packed and not path.exists():
            return [original_id(member) or member for member in PackedShard(found.file).ids]
        expected = int(self._first_cut[shard + 1] - self._first_cut[shard])
        try:
            ids = [cut["custom"]["cut_id"] for _, cut in read_json_lines(str(path))]
        except (KeyError, TypeError):
            ids = []
        if len(ids) != expected:
            raise InputError(
                f"{path}: {len(ids)} cuts with an id, expected {expected}; restore it with `focalstream repair`"
            )
        return ids

    def __getstate__(self) -> dict[str, Any]:
        # Maps are reopened in the process that unpickles (a DataLoader worker): pickling one would copy the shard.
        return {**self.__dict__, "_maps": OrderedDict(), "_ids": OrderedDict(), "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())


def _opened(layout: Layout, remote: CachedDataset | None, packed: bool | None) -> OpenedFolder:
    """Read a folder shard by shard; `remote` is where its files come from."""
    description = read_description(layout)
    shards = _shards(layout, description, remote is not None, packed)
    if remote:
        indexes = [layout.codes_index(shard.entry.shard) for shard in shards]
        remote.fetch(indexes, [shard.entry for shard in shards])
    pairs = [shard.index() for shard in shards]
    return OpenedFolder(description.codec, shards, [begins for begins, _ in pairs], [lengths for _, lengths in pairs])


def _shards(
    layout: Layout, description: Description, is_remote: bool, packed: bool | None
) -> list[TarShard | PackedCodes]:
    """The shards of a dataset in the form that they are to be read in."""
    entries, bits = description.shards, description.codec.bits_per_token
    tars = [TarShard(layout, entry) for entry in entries]
    has_packed = bool(entries) and all(
        layout.name(layout.packed_codes(entry.shard)) in entry.files for entry in entries
    )
    if packed and entries and not has_packed:
        raise InputError(
            f"{layout.out} has no packed files; `focalstream split {layout.out} OUT all=1 --pack` makes them"
        )
    if packed is None:
        packed = has_packed and (is_remote or not tars[0].file.exists())
    return [PackedCodes(layout, entry, bits) for entry in entries] if packed else list(tars)


def _recent(cache: OrderedDict[int, Any], key: int, limit: int, load: Any) -> Any:
    """`cache[key]`, loaded when absent; the least recently used entry leaves when there are more than `limit`."""
    if key not in cache:
        cache[key] = load(key)
        if len(cache) > limit:
            cache.popitem(last=False)
    cache.move_to_end(key)
    return cache[key]
