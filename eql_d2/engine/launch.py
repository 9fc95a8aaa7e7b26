"""Starting the processes of a run, how each of them ends, and a model that trains in several."""

import os
import socket
import sys
import time
from contextlib import contextmanager, nullcontext
from urllib.parse import urlparse

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.engine import create_ddp_model, launch
from detectron2.engine.launch import DEFAULT_TIMEOUT
from detectron2.utils import comm
from torch import nn

from eql_d2.engine.interruption import passing_on_signals
from eql_d2.errors import InputError, one_line, what_to_say
from eql_d2.streams import ready_standard_streams

# What torchrun tells each process that it starts. Only a process of a group has a LOCAL_RANK, so its presence decides;
# cluster managers set some of the others for whole machines.
WORKER_VARIABLES = ("LOCAL_RANK", "LOCAL_WORLD_SIZE", "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

GRACE_SECONDS = 5


def launch_tool(main, args) -> None:
    """Run ``main(args)`` in as many processes as asked for; a process that fails ends them all and gives its exit code.

    The processes are those of ``--num-gpus``, ``--num-machines``, ``--machine-rank`` and ``--dist-url``, started by
    Detectron2's ``launch``, or this one is among those that torchrun has started. They talk by NCCL if there are GPUs,
    else by gloo.

    Args:
        main: a function of a module, since other processes import it.
        args: what Detectron2's ``default_argument_parser`` parses.
    """
    ready_standard_streams()
    if "LOCAL_RANK" in os.environ:
        with one_line_errors():
            check_worker_variables(args)
        return run_as_worker(main, args)
    with one_line_errors():
        check_launch_arguments(args)
    starts_others = args.num_gpus * args.num_machines > 1
    try:
        with passing_on_signals() if starts_others else nullcontext():
            launch(
                run,
                args.num_gpus,
                num_machines=args.num_machines,
                machine_rank=args.machine_rank,
                dist_url=args.dist_url,
                args=(main, args),
            )
    except mp.ProcessExitedException as error:
        if error.exit_code > 0:  # it has said why
            sys.exit(error.exit_code)
        cause = "; is memory short?" if error.signal_name == "SIGKILL" else ""
        print(f"error: {error}{cause}", file=sys.stderr)
        sys.exit(128 - error.exit_code)  # as a shell does


def run(main, args) -> None:
    """``main(args)``, in each process; where it loses another one, that is an error of one line."""
    with one_line_errors(), lost_process_errors():
        main(args)


@contextmanager
def one_line_errors():
    """Within this context what :func:`eql_d2.errors.what_to_say` knows prints ``error: ...`` and ends the process with
    code 1. Any other exception is a bug, and keeps its traceback.
    """
    try:
        yield
    except Exception as error:
        message = what_to_say(error)
        if not message:
            raise
        if not comm.is_main_process():
            time.sleep(GRACE_SECONDS)  # the main process most likely says the same, and launch then ends this one
        print(f"error: {message}", file=sys.stderr, flush=True)
        sys.exit(1)


@contextmanager
def lost_process_errors():
    """Turn what NCCL and gloo raise where processes cannot talk, most often since one is no more, into one line."""
    try:
        yield
    except RuntimeError as error:
        # gloo has no type of its own, but says where in its code the connection broke.
        if not isinstance(error, dist.DistBackendError) and "gloo/transport" not in str(error):
            raise
        raise InputError(
            f"lost another process of this run; if it has failed, its own messages, on its machine, say why "
            f"({one_line(error)})"
        ) from error


def check_launch_arguments(args) -> None:
    """The arguments that say how many processes there are, and where, must make sense together, or an InputError."""
    processes, machines = args.num_gpus, args.num_machines
    if processes < 1 or machines < 1:
        raise InputError(
            f"--num-gpus and --num-machines must be at least 1, got {processes} and {machines} (a run on the CPU has "
            f"--num-gpus processes, too)"
        )
    if torch.cuda.is_available() and processes > torch.cuda.device_count():
        raise InputError(f"--num-gpus is {processes}, but this machine has {torch.cuda.device_count()} GPUs")
    if not 0 <= args.machine_rank < machines:
        raise InputError(
            f"--machine-rank is {args.machine_rank}: with --num-machines {machines} it must be 0 to {machines - 1}"
        )
    if machines > 1 and args.dist_url == "auto":
        raise InputError("--dist-url auto is for one machine: with several give tcp://HOST:PORT of machine 0 to all")
    if processes * machines > 1 and args.machine_rank == 0:
        check_port_is_free(args.dist_url)


def check_port_is_free(url: str) -> None:
    """Nothing may listen on the port of a `tcp://HOST:PORT` that this machine is about to listen on."""
    if urlparse(url).scheme != "tcp" or not urlparse(url).port:
        return
    port = urlparse(url).port
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise InputError(
                f"port {port} of --dist-url is taken ({error.strerror}), perhaps by another run: give another port, "
                f"or on one machine --dist-url auto"
            ) from error


def check_worker_variables(args) -> None:
    """What torchrun sets must be complete, and nothing else may say how many processes there are, or an InputError."""
    missing = [name for name in WORKER_VARIABLES if name not in os.environ]
    if missing:
        raise InputError(
            f"LOCAL_RANK is set, as by torchrun, but {', '.join(missing)} is not: start with torchrun, or unset it"
        )
    if args.num_gpus > 1 or args.num_machines > 1:
        raise InputError(
            "torchrun starts the processes: leave away --num-gpus and --num-machines, and give torchrun "
            "--nproc-per-node and --nnodes"
        )


def run_as_worker(main, args) -> None:
    """Join the process group that the environment describes, and run ``main(args)``."""
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=DEFAULT_TIMEOUT)
    comm.create_local_process_group(int(os.environ["LOCAL_WORLD_SIZE"]))
    comm.synchronize()
    run(main, args)
    dist.destroy_process_group()


def distribute(model: nn.Module, **kwargs) -> nn.Module:
    """``model``, as a DistributedDataParallel if there are several processes, on GPUs or the CPU.

    Args:
        kwargs: of DistributedDataParallel. ``broadcast_buffers`` should be False: losses keep their own state equal.
    """
    if next(model.parameters()).device.type != "cuda":
        kwargs["device_ids"] = None
    return create_ddp_model(model, **kwargs)
