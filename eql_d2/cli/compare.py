"""Print a table of finished runs, with mean and spread over seeds.

eql-d2 compare output/mini/*
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help="output folders of training")
    parser.add_argument("--task", default="bbox", choices=("bbox", "segm"), help="default: bbox")
    parser.add_argument("--dataset", help="which test set, where the runs have several")
    parser.add_argument("--unfinished", action="store_true", help="count runs not evaluated at their end, too")


def run(args: argparse.Namespace) -> None:
    from eql_d2.evaluation.compare import compare_runs

    print(compare_runs(args.runs, args.task, args.dataset, args.unfinished))
