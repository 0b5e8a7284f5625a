"""Prints how many accelerators torch may use here (CUDA, ROCm, MPS, Ascend, ...); says where the driver has more."""

import shutil
import subprocess
import sys


def driver_lists() -> int:
    """GPUs that nvidia-smi lists; 0 where there is none or it fails."""
    if shutil.which("nvidia-smi") is None:
        return 0
    done = subprocess.run(["nvidia-smi", "-L"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                          check=False)
    return sum(line.startswith("GPU") for line in done.stdout.splitlines())


def main() -> None:
    """Print the number; 0 with a warning where torch is not installed or cannot use what the driver lists."""
    try:
        import torch
    except ImportError:
        print(f"warning: torch is not installed for {sys.executable}: no GPU is assumed", file=sys.stderr)
        print(0)
        return
    count = torch.accelerator.device_count() if torch.accelerator.is_available() else 0
    listed = 0 if count else driver_lists()
    if listed:
        print(f"warning: nvidia-smi lists {listed} GPU{'s' * (listed > 1)}, but torch {torch.__version__} cannot use "
              "CUDA: the CPU is used; install a CUDA build of torch that fits the driver", file=sys.stderr)
    print(count)


if __name__ == "__main__":
    main()
