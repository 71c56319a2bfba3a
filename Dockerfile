# docker build -t merlin-agents . && docker run --rm -v "$PWD/runs:/home/runs" merlin-agents train
# With a GPU: docker run --gpus all. PyTorch's build for the CPU alone is smaller: docker build --build-arg TORCH_INDEX=URL, with
# the index that PyTorch's installation page names.
FROM python:3.11-slim
ARG TORCH_INDEX=
RUN pip install --no-cache-dir torch ${TORCH_INDEX:+--index-url "$TORCH_INDEX"}
COPY . /source
RUN pip install --no-cache-dir /source
WORKDIR /home
ENTRYPOINT ["merlin"]
CMD ["--help"]
