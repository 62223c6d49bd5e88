# The image of every part of a node: listener, workers, courier, sweeper, console and `osteon db upgrade`. No TensorFlow
# in it.
# Packages come from the lock file with its hashes, as wheels only; the second stage holds no build tool but pip.

FROM python:3.12-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1
WORKDIR /src
RUN python -m venv /opt/osteon
# The node and the console.
COPY requirements/web.txt requirements/web.txt
RUN /opt/osteon/bin/pip install --only-binary :all: --require-hashes -r requirements/web.txt
COPY pyproject.toml README.md LICENSE ./
COPY console console
COPY dicom_node dicom_node
COPY migrations migrations
COPY models models
COPY training training
COPY worker worker
RUN /opt/osteon/bin/pip install --no-deps --no-build-isolation .

FROM python:3.12-slim-bookworm
# /data belongs to the user before it becomes a volume: a new named volume takes its owner from here.
RUN useradd --system --uid 10001 --user-group --no-create-home --home-dir /data --shell /usr/sbin/nologin osteon \
    && install -d -o osteon -g osteon -m 0750 /data
COPY --from=build /opt/osteon /opt/osteon
ENV PATH=/opt/osteon/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    OSTEON_DATA_DIR=/data
USER 10001
WORKDIR /data
VOLUME /data
EXPOSE 11112 8501
# Each part has a health check of its own (`osteon health PART`): docker-compose.yml names it.
ENTRYPOINT ["osteon"]
CMD ["--help"]
