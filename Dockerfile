# gpugrad for NVIDIA GPUs:  docker build -t gpugrad .  &&  docker run --rm --gpus all -v gpugrad-runs:/home/gpugrad/runs gpugrad
#
# The host needs the NVIDIA driver (525 or newer) and the NVIDIA container toolkit, which mounts the driver. CUDA itself
# comes as Python wheels, so a CUDA base image would only bring the same libraries twice.

FROM python:3.12-slim AS build
RUN python -m venv /opt/gpugrad
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY kernels kernels
COPY gpugrad gpugrad
RUN /opt/gpugrad/bin/pip install --no-cache-dir ".[cuda12,train]"

FROM python:3.12-slim
COPY --from=build /opt/gpugrad /opt/gpugrad
RUN useradd --create-home gpugrad && install -d -o gpugrad -g gpugrad /home/gpugrad/runs /home/gpugrad/.cupy
ENV PATH=/opt/gpugrad/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    CUPY_CACHE_DIR=/home/gpugrad/.cupy
USER gpugrad
WORKDIR /home/gpugrad
# Results, and compiled kernels, which survive the container when the volume is named.
VOLUME ["/home/gpugrad/runs", "/home/gpugrad/.cupy"]
# Like Ctrl-C: a stopped training leaves a run that --resume goes on with.
STOPSIGNAL SIGINT
CMD ["gpugrad", "train"]
