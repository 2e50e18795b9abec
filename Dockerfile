# The command line, with the versions that were tested, for any user:
#   docker build -t scanpy-scvipyro:0.1.0 --build-arg TORCH_INDEX=... .
# TORCH_INDEX is the address of the CPU builds on PyTorch's page "Get started". Without it, PyTorch comes with CUDA,
# which takes gigabytes.
#   docker run --rm -v "$PWD:/data" -u "$(id -u):$(id -g)" scanpy-scvipyro:0.1.0 fit counts.h5ad -o fitted.h5ad
FROM python:3.12-slim AS build

WORKDIR /source
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY scanpy_scvipyro scanpy_scvipyro
ARG TORCH_INDEX=""
RUN python -m venv /opt/venv \
    && /opt/venv/bin/pip install --no-cache-dir -c constraints.txt ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch \
    && /opt/venv/bin/pip install --no-cache-dir -c constraints.txt . \
    && find /opt/venv -name __pycache__ -prune -exec rm -r {} +

FROM python:3.12-slim

# ps, with which Nextflow measures tasks.
RUN apt-get update \
    && apt-get install -y --no-install-recommends procps \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --no-create-home --uid 1000 scvi
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER scvi
WORKDIR /data
ENTRYPOINT ["scanpy-scvipyro"]
CMD ["--help"]
