"""The environment of an engine, put together from what is known. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

_KEPT = frozenset(
    (
        *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR", "LD_LIBRARY_PATH"),
        *("PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX"),
        *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
        *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"),
        *("http_proxy", "https_proxy", "all_proxy", "no_proxy"),
    )
)
_KEPT_PREFIXES = ("LC_", "HF_", "CUDA_", "NVIDIA_", "NCCL_", "TORCH_", "OMP_", "MKL_", "XDG_")

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def base(daemon: Mapping[str, str]) -> dict[str, str]:
    """What an engine inherits of the daemon's own environment: nothing private to the daemon.

    XDG_RUNTIME_DIR is the user's; sd_notify's variables (NOTIFY_SOCKET, WATCHDOG_*, LISTEN_*) are
    the daemon's alone and would make an engine speak in its name.
    """
    kept = {k: v for k, v in daemon.items() if k in _KEPT or k.startswith(_KEPT_PREFIXES)}
    kept.setdefault("PATH", DEFAULT_PATH)
    return kept


def compose(
    inherited: Mapping[str, str],
    *,
    plan: Mapping[str, str],
    env: Mapping[str, str],
    env_file: Mapping[str, str],
    gpus: Mapping[str, str],
    user: Mapping[str, str],
) -> dict[str, str]:
    """Later ones win: inherited, the user's HOME and names, the plan, the TOML's env, the env file.

    The GPUs come last: which an engine may see is decided by what it was given, not by a stray variable.

    Args:
        gpus: as from `visible`.
    """
    return {**inherited, **user, "PYTHONUNBUFFERED": "1", **plan, **env, **env_file, **gpus}


def visible(names: Sequence[str] | None) -> dict[str, str]:
    """What shows an engine these GPUs and no others; nothing where it may see what the daemon sees.

    Args:
        names: of GPUs, by index or UUID, in the order of the engine's ranks.
    """
    if names is None:
        return {}
    # CUDA counts by speed unless told otherwise; the driver, and with it sagectl, counts by address.
    return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(names)}
