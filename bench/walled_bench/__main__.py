"""`python -m walled_bench`: the same command as `walled-ctl bench`."""

from walled_bench.command import bench

if __name__ == "__main__":
    bench(prog_name="walled_bench")
