# EvoMoE with everything but a GPU. From the clone's top folder:
#   docker build -f docker/cpu.Dockerfile --build-arg TORCH_INDEX=ADDRESS -t evomoe:cpu .
# ADDRESS is the index of CPU builds that pytorch.org names. Without it PyPI's torch comes, which
# works too and brings several GB of CUDA.
FROM python:3.12-slim-bookworm

SHELL ["/bin/bash", "-o", "pipefail", "-c"]
ARG TORCH_INDEX=""
WORKDIR /opt/evomoe
RUN useradd --create-home --uid 1000 evomoe

# torch first and alone, so that a change of our code does not fetch it again. gradio asks for an older Pillow than the tests run with.
COPY constraints.txt ./
RUN grep -v '^pillow' constraints.txt > versions.txt \
    && pip install --no-cache-dir --constraint versions.txt ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} torch torchvision

COPY pyproject.toml README.md LICENSE ./
COPY src ./src
RUN pip install --no-cache-dir --constraint versions.txt '.[all]'

# Models and data are in /data: docker run -v "$PWD:/data".
USER 1000
WORKDIR /data
ENTRYPOINT ["evomoe"]
CMD ["doctor"]
