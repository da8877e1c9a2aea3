# The GPU image: the packages of requirements/gpu.lock, by hash, and Raylign, for a user without rights.
#   docker build -t raylign .
#   docker run --gpus all --ipc=host --ulimit memlock=-1 -v /shared:/shared raylign doctor
# Built and run by nobody of ours yet: docs/gpu.md says what was.
FROM nvidia/cuda:13.0.2-runtime-ubuntu24.04

ENV DEBIAN_FRONTEND=noninteractive PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 \
    HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 RAY_USAGE_STATS_ENABLED=0
# g++ and ninja build DeepSpeed's CPU Adam at its first use; the C headers of Python belong to that.
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3.12 python3.12-venv python3.12-dev g++ git \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 raylign

WORKDIR /opt/raylign
RUN python3.12 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
COPY requirements/gpu.lock requirements/
RUN pip install --no-deps --require-hashes -r requirements/gpu.lock
COPY . .
RUN pip install --no-deps --no-build-isolation . && chown -R raylign:raylign /opt/raylign

USER raylign
WORKDIR /home/raylign
ENTRYPOINT ["raylign"]
CMD ["doctor"]
