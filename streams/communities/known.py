"""What accounts are known for: at most one community each, frozen as one version.

SimClusters' KnownFor matrix V with 0/1 entries (Satuluri et al. 2020, section 4.1): whoever has one is an
influential member of that community. A version also freezes the length of each community's column of interests,
so that an account's cosine with a community is a function of its own row.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from kithstream.streams.errors import StoreRefused

FORMAT: Final = "1"
MARK: Final = "kithstream.communities"
NONE: Final = -1


class KnownFor:
    """A version: which community each known account belongs to. About 12 bytes an account.

    Accounts are held by 64-bit hashes of their ids: of 1e8 of them a stranger is taken for one with odds of 5e-12.
    """

    def __init__(
        self, hashes: NDArray[np.uint64], communities: NDArray[np.int32], norms: NDArray[np.float32]
    ) -> None:
        """Take `hashes` (n,) ascending, their `communities` (n,), and `norms` (C,) of the columns of interest."""
        self.hashes = hashes
        self.communities = communities
        self.norms = norms
        digest = blake2b(hashes.tobytes(), digest_size=6)
        digest.update(communities.tobytes())
        digest.update(norms.tobytes())
        self.version = digest.hexdigest()  # 12 hex digits; equal exactly for the same content

    @classmethod
    def of_accounts(cls, known: dict[str, int], norms: NDArray[np.float32]) -> Self:
        """Make a version from communities by account; `norms` (C,) has one entry for each community."""
        hashes = np.array([hash_of(account) for account in known], np.uint64)
        communities = np.array(list(known.values()), np.int32)
        order = np.argsort(hashes, kind="stable")
        return cls(hashes[order], communities[order], norms.astype(np.float32))

    def __len__(self) -> int:
        return len(self.hashes)

    @property
    def count(self) -> int:
        """Number of communities, C; they are numbered from 0."""
        return len(self.norms)

    def of(self, accounts: Sequence[str]) -> NDArray[np.int32]:  # (n,)
        """Return the community of each account, -1 where it is known for none."""
        if not len(self.hashes):
            return np.full(len(accounts), NONE, np.int32)
        wanted = np.array([hash_of(account) for account in accounts], np.uint64)
        at = np.minimum(np.searchsorted(self.hashes, wanted), len(self.hashes) - 1)
        return np.where(self.hashes[at] == wanted, self.communities[at], NONE).astype(np.int32)

    def save(self, path: Path) -> None:
        """Write the version as one safetensors file, aside and renamed."""
        arrays: dict[str, NDArray[Any]] = {
            "hashes": self.hashes,
            "communities": self.communities,
            "norms": self.norms,
        }
        raw = save(arrays, {MARK: f"{FORMAT} {self.version}"})  # one key: the order of several is random
        temporary = path.with_name(path.name + ".writing")
        with temporary.open("wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote; raises StoreRefused for anything else. Nothing is executed."""
        try:
            with safe_open(path, "np") as file:
                meta = file.metadata() or {}
                found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
        except (
            SafetensorError,
            OSError,
            TypeError,
            AttributeError,
        ) as error:  # the latter of types numpy has not
            raise StoreRefused(f"{path} holds no communities: {error}") from error
        form, _, version_held = meta.get(MARK, "").partition(" ")
        flat = all(array.ndim == 1 for array in found.values())
        if form != FORMAT or set(found) != {"hashes", "communities", "norms"} or not flat:
            raise StoreRefused(f"{path} holds no communities of format {FORMAT}")
        version = cls(found["hashes"], found["communities"], found["norms"])
        sound = (
            version.hashes.dtype == np.uint64
            and version.communities.dtype == np.int32
            and version.norms.dtype == np.float32
            and version.hashes.shape == version.communities.shape
            and bool((version.hashes[1:] > version.hashes[:-1]).all())
            and (
                not len(version)
                or 0 <= version.communities.min() <= version.communities.max() < version.count
            )
            and version.version == version_held
        )
        if not sound:
            raise StoreRefused(f"{path} is damaged")
        return version


def hash_of(account: str) -> int:
    """Return the 64-bit number under which an account is held."""
    return int.from_bytes(blake2b(account.encode(), digest_size=8).digest(), "little")
