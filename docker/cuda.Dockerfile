# EvoMoE for NVIDIA GPUs: PyPI's torch brings CUDA; the host needs its driver and the NVIDIA Container Toolkit. From the clone's
# top folder:
#   docker build -f docker/cuda.Dockerfile -t evomoe:cuda .
#   docker run --gpus all --ipc host -v "$PWD:/data" evomoe:cuda doctor
FROM python:3.12-slim-bookworm

SHELL ["/bin/bash", "-o", "pipefail", "-c"]
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /opt/evomoe

# Triton, which torch.compile uses, builds with a C compiler. Debian drops old versions, so that none is named.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 evomoe

# torch first and alone, so that a change of our code does not fetch it again. gradio asks for an older Pillow than the tests run with.
COPY constraints.txt ./
RUN grep -v '^pillow' constraints.txt > versions.txt && pip install --no-cache-dir --constraint versions.txt torch torchvision

COPY pyproject.toml README.md LICENSE ./
COPY src ./src
RUN pip install --no-cache-dir --constraint versions.txt '.[all]'

# Models and data are in /data: docker run -v "$PWD:/data".
USER 1000
WORKDIR /data
ENTRYPOINT ["evomoe"]
CMD ["doctor"]
