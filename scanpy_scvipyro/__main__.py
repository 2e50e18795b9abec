"""``python -m scanpy_scvipyro`` is the command line, where no program was installed."""

from scanpy_scvipyro.cli import app

app(prog_name="scanpy-scvipyro")
