"""Detect files that look like secrets (keys, passwords, tokens), which must not get into archives."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

# Patterns for names in lower case.
_NAMES = (
    ".env*", "*.env", ".netrc", "_netrc", ".pypirc", ".npmrc", ".pgpass", ".my.cnf", ".htpasswd", ".git-credentials",
    ".dockercfg", ".s3cfg", ".boto", ".vault-token", "kaggle.json", "client_secret*.json", "service[-_]account*.json",
    "id_rsa", "id_dsa", "id_ecdsa", "id_ecdsa_sk", "id_ed25519", "id_ed25519_sk", "*.pem", "*.key", "*.p12", "*.pfx",
    "*.ppk", "*.jks", "*.keystore", "*.kdbx", "*.tfvars", "*.token", ".token", "credentials", ".credentials*",
    ".secrets*",
)  # fmt: skip
# Such as secrets.yaml, db_credentials.json, api-keys.txt; not *.py, which is code that the job imports.
_WORDS = re.compile(
    r"(^|.*[._-])(secrets?|credentials?|creds|passwords?|passwd|api[_-]?keys?|(auth|access|api)[_-]?tokens?)"
    r"([._-][\w.-]*)?\.(ya?ml|json|toml|ini|cfg|conf|txt|csv|env|xml|properties|enc|gpg|bak)"
)
# Every file in one of these folders is private.
_FOLDERS = {".ssh", ".aws", ".gnupg", ".kube", ".azure", ".gcloud", ".docker"}
_KEY = re.compile(rb"\s*(-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----|PuTTY-User-Key-File-\d|openssh-key-v1)")
_HEAD_BYTES = 256


def is_secret(name: str, path: Path) -> bool:
    """Whether a file looks like a secret, by its name relative to the project or by a private key at its start."""
    parts = PurePosixPath(name.lower()).parts
    if not _FOLDERS.isdisjoint(parts[:-1]) or _is_called_so(parts[-1]):
        return True
    return _KEY.match(_head(path)) is not None


def found(files: Iterable[tuple[str, Path]], include: Iterable[str] = ()) -> list[str]:
    """Return the names of files that look like secrets, without those that match a name or pattern of `include`."""
    wanted = tuple(include)
    return [name for name, path in files if is_secret(name, path) and not _is_wanted(name, wanted)]


def _is_called_so(base: str) -> bool:
    return any(fnmatchcase(base, pattern) for pattern in _NAMES) or _WORDS.fullmatch(base) is not None


def _is_wanted(name: str, include: Iterable[str]) -> bool:
    return any(fnmatchcase(one, pattern) for pattern in include for one in (name, PurePosixPath(name).name))


def _head(path: Path) -> bytes:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return b""
    try:
        return os.read(handle, _HEAD_BYTES)
    except OSError:
        return b""
    finally:
        os.close(handle)
