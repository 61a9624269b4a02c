"""What lies in a folder of `save_pretrained`, or of a repository that is fetched to be such."""

import json
import warnings
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from burst import hub
from burst.errors import CheckpointError
from burst.files import at_home
from burst.loading.common import Foreign

WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""Where transformers looks for weights, in this order; an index names the shards."""
PROCESSOR = ("preprocessor_config.json", "processor_config.json")
TOKENIZER = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model"),
    "sentencepiece.bpe.model",
)


@dataclass(frozen=True)
class HfFiles:
    """A model's files on this disk.

    Attributes:
        name: as it was asked for.
        folder: where they lie; of a repository, its snapshot in the hub's cache.
        repository: at the commit of the snapshot; None if the folder was given.
    """

    name: str
    folder: Path
    repository: str | None = None

    @property
    def source(self) -> str:
        """Where a reader of a record finds them."""
        if self.repository is None:
            return str(self.folder)
        return f"{hub.hub_page(self.repository)}/tree/{self.folder.name}"

    def weights(self) -> list[Path]:
        """The weight file, or all shards in the order of their names; fetched where they are not.

        Raises:
            CheckpointError: there are none, or a shard is missing.
        """
        if self.repository:
            with _explained(self.name, self.repository):
                first = hub.fetch_first_hub_file(self.repository, WEIGHTS)
        else:
            there = (self.folder / name for name in WEIGHTS)
            first = next((file for file in there if file.is_file()), self.folder)
        if first == self.folder:
            raise CheckpointError(
                f"{self.folder} holds no weights, expected {WEIGHTS[0]} or {WEIGHTS[2]}, "
                f"or an index of shards"
            )
        return self._shards(first) if first.suffix == ".json" else [first]

    def fetch(self, filenames: Iterable[str]) -> None:
        """Fetch what a repository has of some files, unless one of them has been fetched before."""
        if self.repository is None or any((self.folder / name).is_file() for name in filenames):
            return
        with _explained(self.name, self.repository):
            hub.fetch_those_there(self.repository, filenames)

    def _shards(self, index: Path) -> list[Path]:
        try:
            names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{index} is no index of weight files: {error}") from error
        if not names or any(".." in PurePosixPath(name).parts or name[:1] == "/" for name in names):
            raise CheckpointError(f"{index} names files outside of its folder, or none")
        if self.repository:
            with _explained(self.name, self.repository):
                return [hub.fetch_hub_file(self.repository, name) for name in names]
        missing = [name for name in names if not (self.folder / name).is_file()]
        if missing:
            raise CheckpointError(
                f"{self.folder / missing[0]} is missing, one of the {len(names)} weight files that "
                f"{index.name} names"
            )
        return [self.folder / name for name in names]


def find_files(name: str) -> HfFiles:
    """The files of `hf:FOLDER`, or of `hf:ORG/NAME`, of which the configuration is fetched.

    Raises:
        CheckpointError: no such folder, or one without a configuration; or no such repository, or
            none that can be reached.
    """
    place = name.partition(":")[2]
    folder = at_home(place)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise CheckpointError(
                f"{folder} holds no config.json; expected a folder that `save_pretrained` wrote"
            )
        return HfFiles(name, folder)
    if folder.exists():
        raise CheckpointError(
            f"{folder} is a file; expected a folder that `save_pretrained` wrote, or hf:ORG/NAME"
        )
    if place.startswith((".", "/", "~")) or place.count("/") > 1:
        raise CheckpointError(
            f"no folder {folder}; expected one that `save_pretrained` wrote, or hf:ORG/NAME"
        )
    with _explained(name, place):
        snapshot = hub.fetch_hub_file(place, "config.json").parent
    return HfFiles(name, snapshot, hub.pinned(place, snapshot))


@contextmanager
def silent(transformers: Foreign) -> Iterator[None]:
    """Without transformers' advice and progress bars: what matters of them is raised."""
    logging = transformers.utils.logging
    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


def _explained(name: str, repository: str) -> AbstractContextManager[None]:
    page = hub.hub_page(repository)
    return hub.explained(name, f"get the files of {page} elsewhere and give hf:FOLDER")
