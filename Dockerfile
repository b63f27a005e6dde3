# The clone with everything that runs need, on the CPU. Untried: no Docker was at hand when this was written.
#
#   docker build -t deep-compression .
#   docker run --rm --init -v deep-compression:/app/artifacts deep-compression python -m flows run conf/digits.yaml
#
# For a work pool nothing is set here: Prefect's worker gives the command (prefect flow-run execute).
FROM python:3.11-slim

# PyTorch's index of CPU builds; pip prefers them to the CUDA builds of PyPI, which are gigabytes.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PYTHONUNBUFFERED=1 \
    PYTHONPATH=/app \
    DO_NOT_TRACK=1

# 1000 is the user of conf/kubernetes/job-template.json too.
RUN useradd --uid 1000 --create-home app \
    && mkdir -p /app/artifacts \
    && chown -R app:app /app
WORKDIR /app

# Torch is a layer of its own: it changes least and is the largest.
COPY constraints.txt ./
RUN pip install --extra-index-url "$TORCH_INDEX" -c constraints.txt torch==2.13.0

COPY --chown=app:app . .
RUN pip install --extra-index-url "$TORCH_INDEX" -c constraints.txt -e ".[torch,fast,flow,onnx,openvino,coreml,litert,hub,data,fabric,s3,dask]"

USER 1000
VOLUME /app/artifacts
CMD ["python", "-m", "flows", "--help"]
