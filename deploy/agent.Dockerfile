# The agent: docker build --file deploy/agent.Dockerfile --tag wetink-agent .
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
RUN /tools/bin/uv sync --quiet --frozen --no-dev --no-install-project --extra agent --extra client
COPY --from=wheel /wheel /wheel
RUN /tools/bin/uv pip install --quiet --offline --no-deps --python /opt/wetink/bin/python /wheel/*.whl

FROM ${BASE_IMAGE}
LABEL org.opencontainers.image.title="wetink-agent" \
      org.opencontainers.image.description="Tracks which memory pages of processes are written, and streams it to a collector" \
      org.opencontainers.image.licenses="Apache-2.0"
# Its health socket; for an agent of any user.
RUN install -d -m 1777 /run/wetink-agent
COPY --from=environment /opt/wetink /opt/wetink
ENV PATH=/opt/wetink/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    WETINK_AGENT_COLLECTOR=unix:/run/wetink/collector.sock \
    WETINK_AGENT_HEALTH=unix:/run/wetink-agent/health.sock \
    WETINK_COLLECTOR=unix:/run/wetink/collector.sock
# User 0, since container runtimes give capabilities to no other; those it needs are in deploy/README.md, and the rest is
# dropped where it is started. The group is the collector's, by which it connects to the socket.
USER 0:65532
VOLUME ["/run/wetink-agent"]
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=5s --start-period=20s --retries=3 \
  CMD ["wetink", "health", "--collector", "unix:/run/wetink-agent/health.sock"]
ENTRYPOINT ["wetink-agent"]
