# The collector: docker build --file deploy/collector.Dockerfile --tag wetink-collector .
#
# BASE_IMAGE: any image like Debian 12's with python3, 3.11 or newer. Both Dockerfiles begin with the same two stages, so
# that a builder with a cache makes the wheel once.
ARG BASE_IMAGE=python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS tools
# Debian's python3 has its venv in a package of its own; another one has it already. Certificates that the base trusts
# besides, such as a proxy's, count for uv as they do for pip. Bytecode is made in advance: the file system is read-only
# later, and each health check is a new process.
RUN python3 -c 'import ensurepip' 2>/dev/null \
 || { apt-get update -q && apt-get install -qy --no-install-recommends ca-certificates python3-venv; }
WORKDIR /source
COPY pyproject.toml uv.lock ./
RUN python3 -m venv /tools \
 && /tools/bin/pip install --quiet --no-cache-dir --disable-pip-version-check \
    "$(sed -n 's/^ *"\(uv==[0-9.]*\)",$/\1/p' pyproject.toml)"
ENV UV_PROJECT_ENVIRONMENT=/opt/wetink \
    UV_PYTHON_DOWNLOADS=never \
    UV_SYSTEM_CERTS=1 \
    UV_COMPILE_BYTECODE=1 \
    UV_LINK_MODE=copy \
    UV_NO_CACHE=1

FROM tools AS wheel
# The compiler is for the agent's loop for wp-sync.
RUN apt-get update -q \
 && apt-get install -qy --no-install-recommends gcc libc6-dev linux-libc-dev
COPY . .
RUN /tools/bin/uv build --quiet --wheel --out-dir /wheel

FROM tools AS environment
# What the lock says, by its hashes; then the wheel, and nothing that the lock did not say.
RUN /tools/bin/uv sync --quiet --frozen --no-dev --no-install-project --extra collector --extra client
COPY --from=wheel /wheel /wheel
RUN /tools/bin/uv pip install --quiet --offline --no-deps --python /opt/wetink/bin/python /wheel/*.whl

FROM ${BASE_IMAGE}
LABEL org.opencontainers.image.title="wetink-collector" \
      org.opencontainers.image.description="Takes the dirty pages of all hosts from their agents, keeps them, and tells which are dirty" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN groupadd --gid 65532 wetink \
 && useradd --uid 65532 --gid 65532 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin wetink \
 && install -d -o wetink -g wetink -m 0750 /run/wetink /var/lib/wetink
COPY --from=environment /opt/wetink /opt/wetink
ENV PATH=/opt/wetink/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    WETINK_COLLECTOR_LISTEN=unix:/run/wetink/collector.sock \
    WETINK_COLLECTOR_DATA=/var/lib/wetink \
    WETINK_COLLECTOR=unix:/run/wetink/collector.sock
USER 65532:65532
VOLUME ["/run/wetink", "/var/lib/wetink"]
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=5s --start-period=20s --retries=3 CMD ["wetink", "health"]
# The agent's user is another one: it connects to the socket by the group.
ENTRYPOINT ["/bin/sh", "-c", "umask 0007 && exec wetink-collector \"$@\"", "wetink-collector"]
