"""Uploading an exported model to the hub, behind the gates of its data."""

from __future__ import annotations

import re
from pathlib import Path

from medtune_jax.convert.origin import Origin
from medtune_jax.errors import UserError


def check_release(origin: Origin, repository: str, i_may_release: bool) -> None:
    """Raises UserError where the weights must not, or cannot yet, be uploaded to `repository`."""
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", repository):
        raise UserError(f"--push={repository} does not name a hub repository: write owner/name.")
    if origin.unlicensed:
        raise UserError(
            f"Not pushed: no licence is known of {', '.join(origin.unlicensed)}, and a model card's licence is that of "
            "the base and of all data. Name the base's with --base_licence; describe your own data in a source file "
            "(medtune prepare --source_file) and train on rows prepared with it."
        )
    if origin.credentialed and not i_may_release:
        raise UserError(
            f"Not pushed: the model was tuned on {', '.join(origin.credentialed)}, text under a data use agreement, "
            "which a model can repeat. Give --i_may_release once the agreement's owner has allowed it."
        )


def push(folder: Path, repository: str) -> str:
    """Uploads a folder into a hub repository, private if it is new; returns its address.

    Raises:
      UserError: no access, no network.
    """
    from huggingface_hub import HfApi

    hub = HfApi()
    try:
        hub.create_repo(repository, private=True, exist_ok=True)
        hub.upload_folder(repo_id=repository, folder_path=str(folder), commit_message="Exported by medtune_jax")
    except Exception as error:  # the hub's client raises many kinds; each means that nothing was published
        raise UserError(f"{repository} cannot be written: {error}. The export lies in {folder}.") from error
    return f"{hub.endpoint}/{repository}"
