"""Trained prompts on the Hugging Face hub: pushed in one commit, pulled whole or not at all."""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, constants, utils
from huggingface_hub.errors import HFValidationError

from bpt.hub_folder import FILES, MODEL, SharedRun, write_hub_folder
from bpt.run_folder import CONFIG, RunFolder, open_run
from burst import hub
from burst.errors import BurstError, CheckpointError, OutputError
from burst.files import make_folder_atomically

# Beside the failures of any download those of an upload, as the client raises them.
REFUSALS: tuple[type[BaseException], ...] = (*hub.FAILURES, RuntimeError, ValueError)


def push_run(run: RunFolder, repository: str, *, private: bool | None = None) -> str:
    """Upload a run to the hub, in one commit; the repository is made if there is none.

    The hub's client knows who asks from `hf auth login` or $HF_TOKEN.

    Args:
        run: from `open_run`; of a classifier, at its end.
        repository: ORG/NAME.
        private: whether a new repository is private; None: as is usual for the ORG.

    Returns:
        The page of the repository.

    Raises:
        BurstError: `repository` is no ORG/NAME; the run is a detector, not at its end, was pulled,
            or stands on a model that is code; or the hub cannot be reached, or refuses.
        CheckpointError: see `Run.load_model`.
    """
    check_repository(repository)
    with tempfile.TemporaryDirectory() as temporary:
        files = write_hub_folder(run, Path(temporary), repository)
        return push_files(files, repository, private=private)


def push_files(files: Sequence[Path], repository: str, *, private: bool | None = None) -> str:
    """Upload files to the top of a repository, all or none; arguments as of `push_run`.

    Raises:
        BurstError: the hub cannot be reached, or refuses.
    """
    api = HfApi(endpoint=constants.ENDPOINT)
    operations = [CommitOperationAdd(file.name, str(file)) for file in files]
    with _told(f"cannot push to {hub.hub_page(repository)}"):
        if not hub.hub_answers():
            raise OSError("no connection to the hub, or offline mode")
        api.create_repo(repository, private=private, exist_ok=True)
        api.create_commit(repository, operations, commit_message="A prompt, pushed by bpt")
    return hub.hub_page(repository)


def pull_prompt(repository: str, out: str | Path, *, revision: str | None = None) -> Path:
    """Fetch a prompt that was pushed into a folder of its own, which `bpt.open_run` opens.

    Args:
        repository: ORG/NAME.
        out: the folder; it must not be there, or be empty.
        revision: branch, tag or commit; the newest of the main branch if not given.

    Returns:
        The folder.

    Raises:
        OutputError: the folder holds something, or cannot be written.
        CheckpointError: there is no such prompt, or it cannot be had whole.
        BurstError: `repository` is no ORG/NAME.
    """
    check_repository(repository)
    folder = Path(out)
    check_new(folder)
    snapshot = _fetch(repository, revision, newest=True)

    def copy(part: Path) -> None:
        for name in FILES:
            if (snapshot / name).is_file():
                shutil.copyfile(snapshot / name, part / name)
        run = open_run(part)
        assert isinstance(run, SharedRun)
        run.check()

    write_new(folder, copy)
    return folder


def write_new(folder: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a new folder, which is there as a whole or not at all.

    Raises:
        OutputError: the folder holds something, or cannot be written.
    """
    check_new(folder)
    try:
        with make_folder_atomically(folder) as part:
            write(part)
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error.strerror or error}") from error


def check_new(folder: Path) -> None:
    """Refuse a folder that holds something.

    Raises:
        OutputError: it does.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise OutputError(
            f"{folder} is there already; choose another, such as --out {folder}-shared"
        )


def fetch_shared(place: str, revision: str | None = None) -> Path:
    """Where the hub's cache has a prompt, which is fetched if it is not there.

    Raises:
        CheckpointError: there is no such prompt, or it cannot be had.
    """
    try:
        check_repository(place)
    except BurstError as error:
        raise CheckpointError(
            f"{place} is no folder, no file, and no ORG/NAME of a repository on the hub"
        ) from error
    return _fetch(place, revision, newest=False)


def check_repository(repository: str) -> None:
    """Refuse what is no name of a repository.

    Raises:
        BurstError: it is none.
    """
    try:
        utils.validate_repo_id(repository)  # type: ignore[attr-defined, unused-ignore]
        good = repository.count("/") == 1
    except HFValidationError:
        good = False
    if not good:
        raise BurstError(
            f"{repository!r} is no repository; expected ORG/NAME, of letters, digits, - _ and ."
        )


def _fetch(repository: str, revision: str | None, *, newest: bool) -> Path:
    """The snapshot of a repository in the hub's cache, with all files of one commit."""
    named = f"{repository}@{revision}" if revision else repository
    with _told(f"cannot pull {named}", CheckpointError):
        if newest:
            if not hub.hub_answers():
                raise OSError("no connection to the hub, or offline mode")
            info = HfApi(endpoint=constants.ENDPOINT).repo_info(repository, revision=revision)
            named = f"{repository}@{info.sha}"
        snapshot = hub.fetch_hub_file(named, CONFIG).parent
        pinned = hub.pinned(repository, snapshot)
        _check_kind(snapshot / CONFIG, repository)
        hub.fetch_hub_file(pinned, MODEL)
        if newest:
            hub.fetch_those_there(pinned, FILES)
    return snapshot


def _check_kind(config: Path, repository: str) -> None:
    try:
        if isinstance(open_run(config.parent), SharedRun):
            return
    except CheckpointError:
        pass
    raise CheckpointError(
        f"{hub.hub_page(repository)} holds no prompt that `bpt push` made: its {CONFIG} is of "
        "another kind, or of a later version"
    )


@contextmanager
def _told(what: str, kind: type[BurstError] = BurstError) -> Iterator[None]:
    """Turn every way in which the hub or the way there fails into one line."""
    try:
        yield
    except BurstError:
        raise
    except REFUSALS as error:
        raise kind(f"{what}: {hub.why(error)}") from error
