# The service with its models: `docker build -t nocturne .`, then `docker run -p 8080:8080 nocturne`.
# GPU=1 adds the CUDA and cuDNN libraries; without them the image runs on the CPU. Runs read-only with a tmpfs at /tmp, and needs
# no shell. To build on the very same base again, name its digest: `make image BASE=python:3.11-slim-bookworm@sha256:...`.
ARG BASE=python:3.11-slim-bookworm

# checkov:skip=CKV_DOCKER_7:BASE has a version unless whoever builds gives another
FROM ${BASE} AS build
ARG GPU=0
WORKDIR /build
COPY pyproject.toml constraints.txt constraints-cuda.txt LICENSE ./
# The core dependencies, and those of OpenTelemetry, which settings switch on: the code is copied, not installed, and so a change of code installs nothing again.
RUN python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; print('\n'.join(p['dependencies'] + p['optional-dependencies']['otel']))" > requirements.txt \
 && if [ "${GPU}" = 1 ]; then printf "onnxruntime-gpu[cuda,cudnn]\nonnx\n" >> requirements.txt; fi \
 && python -m venv /opt/venv \
 && /opt/venv/bin/python -m pip install --no-cache-dir --disable-pip-version-check -c constraints.txt -c constraints-cuda.txt \
    -r requirements.txt \
 && /opt/venv/bin/python -m pip uninstall --yes pip setuptools
# What is installed, with its licences, as CycloneDX. The tool that writes it stays behind in this stage.
RUN python -m venv /opt/sbom \
 && /opt/sbom/bin/python -m pip install --no-cache-dir --disable-pip-version-check -c constraints.txt cyclonedx-bom \
 && mkdir /app \
 && /opt/sbom/bin/cyclonedx-py environment --pyproject pyproject.toml --gather-license-texts --output-reproducible \
    -o /app/sbom.cdx.json /opt/venv
COPY openapi.yaml LICENSE /app/
COPY service /app/service
COPY exported /app/exported
# Bytecode now, since nothing can be written later.
RUN /opt/venv/bin/python -m compileall -q /app/service

FROM ${BASE}
# The licences are those of the code and of the models; sbom.cdx.json has those of the packages.
LABEL org.opencontainers.image.title="nocturne" \
      org.opencontainers.image.description="Composes piano music: an LSTM, exported to ONNX, behind a stateless HTTP service" \
      org.opencontainers.image.licenses="MIT AND CC-BY-SA-4.0"
COPY --from=build /opt/venv /opt/venv
COPY --from=build /app /app
WORKDIR /app
ENV PATH=/opt/venv/bin:${PATH} \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    ORT_DISABLE_TELEMETRY=1 \
    HOST=0.0.0.0 \
    PORT=8080 \
    ADMIN_PORT=9090
EXPOSE 8080 9090
USER 10001:10001
# Named, so that Docker does not take another signal for the end: after SIGHUP the container is still one to be restarted.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request; p = int(os.environ['ADMIN_PORT']) or os.environ['PORT']; urllib.request.urlopen(f'http://127.0.0.1:{p}/livez', timeout=4)"]
CMD ["python", "-m", "gunicorn", "-c", "service/gunicorn.conf.py"]
