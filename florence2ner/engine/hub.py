"""Uploads models to the Hugging Face hub, with patience: networks fail, and a run must not fail with them."""

import time
from collections.abc import Callable
from pathlib import Path

from florence2ner.engine.run_files import STATE_FOLDER, find_model
from florence2ner.errors import UserError

_WAITS = (2.0, 8.0, 30.0)  # seconds before the upload is tried again
_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN to a token that may write"


def doubt_about_upload() -> str | None:
    """Why an upload would fail as things are now: a line for the user, or None. Nothing is sent."""
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set: nothing can be pushed to the hub; unset it"
    return None if get_token() else f"nobody is logged in to the hub: {_LOG_IN}"


def push(folder: Path, repo: str, *, public: bool = False, say: Callable[[str], None] = print) -> str:
    """Upload a model to a repository of the hub, without training states. Returns the address of the model.

    Of a run's `folder` the best checkpoint is uploaded, else the newest. A repository that is missing is made, for
    everybody to see only where it is to be `public`; one that is there stays as it is. An upload that the network or
    the hub breaks off is tried again, which `say` says. Raises UserError for a folder without a model, a name that no
    repository can have, without the right to write there, and where it keeps failing.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    # The base class is that of its HTTP library, which is another one from version to version.
    failures: tuple[type[BaseException], ...] = (HfHubHTTPError.__bases__[0], ConnectionError)

    model = Path(find_model(str(folder)))
    if not any((model / name).is_file() for name in ("config.json", "adapter_config.json")):
        raise UserError(f"{folder} holds no model: name a checkpoint, or the folder of a run")
    hub = HfApi()
    for wait in (*_WAITS, None):
        try:
            hub.create_repo(repo, private=not public, exist_ok=True)
            ignored = [f"{STATE_FOLDER}/*", ".*"]
            hub.upload_folder(
                repo_id=repo, folder_path=model, ignore_patterns=ignored, commit_message=f"Upload {model.name}"
            )
            return f"{hub.endpoint}/{repo}"
        except HFValidationError:
            raise UserError(f"{repo} can't be the name of a repository: give one such as somebody/mine") from None
        except OfflineModeIsEnabled:
            raise UserError("HF_HUB_OFFLINE is set: unset it to push to the hub") from None
        except failures as error:
            reason, is_final = _judge(error)
            if is_final or wait is None:
                raise UserError(f"{model} could not be pushed to {repo} ({reason[0]}): {reason[1]}") from error
            say(f"the upload to {repo} failed ({reason[0]}); it is tried again in {wait:.0f} seconds")
            time.sleep(wait)
    raise AssertionError("the last try returns or raises")


def _judge(error: BaseException) -> tuple[tuple[str, str], bool]:
    """What went wrong and what helps, and whether trying again does not."""
    response = getattr(error, "response", None)
    what = " ".join(str(error).split("\n")[0].split()) or type(error).__name__
    if response is None or response.status_code >= 500 or response.status_code == 429:
        return (what, "try again later"), False
    return (what, _LOG_IN if response.status_code in (401, 403) else "look at the name of the repository"), True
