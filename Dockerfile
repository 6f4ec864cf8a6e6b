# One image for every command of kithstream. `docker compose build` builds it.
#
# TORCH_INDEX is empty by default: pip then takes torch's wheel from its usual index, which on x86-64 brings CUDA's
# libraries, some gigabytes that nothing here uses. Give the address of an index that holds the CPU wheels of
# torch, and the image is small: docker compose build --build-arg TORCH_INDEX=ADDRESS. The version is constraints.txt's
# either way.
FROM python:3.11-slim AS builder

ARG TORCH_INDEX=
ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    HNSWLIB_NO_NATIVE=1
WORKDIR /build

# hnswlib comes as source; without the processor's own instructions it runs on another than it was built on.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/* \
    && python -m venv /opt/kithstream
ENV PATH=/opt/kithstream/bin:$PATH

# What is needed comes before the source, so that a change of the source installs the source alone.
COPY constraints.txt pyproject.toml ./
RUN python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
print(*p['dependencies'], *p['optional-dependencies']['server'], sep='\n')" > requirements.txt \
    && if [ -n "$TORCH_INDEX" ]; then \
        pip install --no-deps --index-url "$TORCH_INDEX" "$(grep '^torch==' constraints.txt)"; \
    fi \
    && pip install --constraint constraints.txt --requirement requirements.txt

COPY README.md LICENSE ./
COPY src src
COPY streams streams
COPY models models
COPY index index
RUN pip install --no-deps . \
    && kithstream --version


FROM python:3.11-slim

# State is owned by nobody else, and the only places that are written are these two and /tmp.
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin kithstream \
    && install --directory --owner kithstream --group kithstream \
        /var/lib/kithstream/state /var/lib/kithstream/checkpoints
COPY --from=builder /opt/kithstream /opt/kithstream

ENV PATH=/opt/kithstream/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    KITHSTREAM_SERVE__HOST=0.0.0.0 \
    KITHSTREAM_SERVE__PORT=8484 \
    KITHSTREAM_WORKER__DATA=/var/lib/kithstream/state \
    KITHSTREAM_WORKER__CHECKPOINTS=/var/lib/kithstream/checkpoints

USER 10001:10001
WORKDIR /var/lib/kithstream
EXPOSE 8484
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as u; u.urlopen(f\"http://127.0.0.1:{os.environ['KITHSTREAM_SERVE__PORT']}/readyz\", timeout=3)"]

ENTRYPOINT ["kithstream"]
CMD ["worker"]
