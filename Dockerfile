# docker build -t merlin-agents . && docker run --rm -v "$PWD/runs:/work/runs" merlin-agents train
FROM python:3.11-slim
# PyTorch's build for the CPU. For a GPU: docker build --build-arg TORCH=https://pypi.org/simple, then docker run --gpus all
ARG TORCH=https://download.pytorch.org/whl/cpu
RUN pip install --no-cache-dir torch --index-url "$TORCH"
COPY . /source
RUN pip install --no-cache-dir /source
WORKDIR /work
ENTRYPOINT ["merlin"]
CMD ["--help"]
