"""Which devices this machine has, and whether it can compile."""

import os
import shutil

import torch


def available_devices() -> list[str]:
    """Kinds of device that torch can use here, the fastest first.

    Returns
    -------
    list of str
        Of "cuda", "mps" and "cpu"; the last is always there.

    Examples
    --------
    >>> available_devices()[-1]
    'cpu'
    """
    found = [("cuda", torch.cuda.is_available()), ("mps", torch.backends.mps.is_available()), ("cpu", True)]
    return [name for name, is_there in found if is_there]


def choose_device(name: str | torch.device = "auto") -> torch.device:
    """The device with this name, or the best one that there is.

    Parameters
    ----------
    name : str or torch.device
        "auto" for the first of `available_devices`, or a name such as "cpu", "mps", "cuda" (the
        current one, see ``torch.cuda.set_device``) or "cuda:1".

    Returns
    -------
    torch.device
        A device that exists; "meta", which computes shapes only, always does.

    Raises
    ------
    ValueError
        If torch does not know the name or the machine has no such device.

    Examples
    --------
    >>> choose_device("cpu")
    device(type='cpu')
    """
    there = available_devices()
    name = there[0] if name == "auto" else name
    choice = f"available here: {', '.join(there)}; 'auto' takes the first of them"
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"torch knows no device {name!r}; {choice}") from error
    if device.type not in [*there, "meta"]:
        raise ValueError(f"device {str(name)!r} is not available; {choice}")
    if device.type != "cuda":
        return device
    if str(device) == "cuda":
        return torch.device("cuda", torch.cuda.current_device())  # in many processes each has its own
    if device.index >= torch.cuda.device_count():
        raise ValueError(f"device {str(name)!r} is not available: there are {torch.cuda.device_count()} GPUs")
    return device


def compiler_problem() -> str | None:
    """Why torch.compile cannot work on the CPU here, if so.

    Returns
    -------
    str or None
        One sentence with the way out, or None where a C++ compiler was found.

    Examples
    --------
    >>> problem = compiler_problem()  # None, or "torch.compile needs a C++ compiler ..."
    """
    wanted = os.environ.get("CXX", "cl" if os.name == "nt" else "g++")
    if shutil.which(wanted) is not None:
        return None
    return (
        f"torch.compile needs a C++ compiler on the CPU and {wanted} is not there: "
        "install one (Debian: g++; macOS: xcode-select --install), or do without compile"
    )
