"""Files of real data that are too large for the package: found on this machine, or downloaded; checked in any case."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

SHA256 = {
    "neurons_10x_10k_1000genes.h5ad": "b9a31ec9882b094faaa8dbdee6f9759e4c86bec930f3fe220c86b5ba2a9b2a8d",
    "pbmc_10x_4chemistries.h5ad": "51d2a2d995511679d606546f6fd6a875c41a74dc379dbcfe16ab718a1b5b162d",
    "pbmc_facs_zheng.h5ad": "ca7f746e6c7208d9458f9d77b303da2e5eab70a16d8b9a92e694bc5035af8bea",
    "sc_mixology_5plates.h5ad": "77f6c1698af05237a53596ee06138da5b2cb8bfc6c19962a632481fdb9dd7823",
}


def fetch(name: str) -> Path:
    """Path of a file: in the folder SCVIPYRO_DATA, else in pooch's cache, else downloaded from SCVIPYRO_DATA_URL."""
    import pooch

    folder, url = os.environ.get("SCVIPYRO_DATA"), os.environ.get("SCVIPYRO_DATA_URL")
    cache = Path(pooch.os_cache("scanpy_scvipyro"))
    for path in ([Path(folder) / name] if folder else []) + [cache / name]:
        if path.is_file():
            found = pooch.file_hash(path)
            if found != SHA256[name]:
                msg = (
                    f"{path} is not the file that this version knows: its SHA256 is {found}, not {SHA256[name]}. "
                    "Delete it, or copy it anew."
                )
                raise ValueError(msg)
            return path
    if not url:
        msg = (
            f"{name} was not found. Looked for in the folder SCVIPYRO_DATA ({folder or 'not set'}) and in the cache "
            f"{cache}; no SCVIPYRO_DATA_URL is set to download it from. Put the file into one of the two folders, or "
            "set SCVIPYRO_DATA_URL to the address of a folder that has it: your lab's mirror, or the release page of "
            "the project."
        )
        raise FileNotFoundError(msg)
    return _download(name, url, cache)


def _download(name: str, url: str, cache: Path) -> Path:
    import pooch
    from scanpy import settings

    address = f"{url.rstrip('/')}/{name}"
    local = urlsplit(address).scheme == "file"
    try:
        return Path(
            pooch.retrieve(
                address,
                known_hash=SHA256[name],
                fname=name,
                path=cache,
                downloader=_copy if local else None,
                progressbar=settings.verbosity > 0,
            )
        )
    except (OSError, ValueError) as error:  # no such file or host; another checksum, or no kind of address
        msg = f"{name} could not be downloaded from {address}: {error} Set SCVIPYRO_DATA_URL to a folder that has it."
        raise (ValueError if isinstance(error, ValueError) else OSError)(msg) from error


def _copy(url: str, output_file: str, _: object) -> None:
    """Take the place of pooch's downloaders, none of which reads file:// addresses."""
    shutil.copyfile(url2pathname(urlsplit(url).path), output_file)
