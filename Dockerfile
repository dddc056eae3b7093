# The image of every pod: `docker build -t job .`
#
# Your own processor, mounted:   docker run -v ./processors:/processors:ro … job plan … --processor /processors/mine.py:work
# or built on top:               FROM job
#                                USER root
#                                COPY --from=build … (its packages)  or  COPY mine.py /processors/
#                                USER 65532:65532

FROM python:3.13-slim-trixie AS build
ENV UV_COMPILE_BYTECODE=1 \
    UV_LINK_MODE=copy \
    UV_NO_CACHE=1 \
    UV_PROJECT_ENVIRONMENT=/opt/job \
    UV_PYTHON=/usr/local/bin/python3 \
    UV_PYTHON_DOWNLOADS=never
RUN pip install --no-cache-dir --root-user-action=ignore uv==0.13.9
WORKDIR /src
# the packages first: they change less often than the code
COPY pyproject.toml uv.lock ./
RUN uv sync --locked --no-default-groups --all-extras --no-install-project
COPY README.md LICENSE ./
COPY job job
RUN uv sync --locked --no-default-groups --all-extras --no-editable
# what only building against a package, or testing it, would need
RUN rm -rf /opt/job/lib/python3*/site-packages/pyarrow/include \
           /opt/job/lib/python3*/site-packages/pyarrow/tests \
           /opt/job/lib/python3*/site-packages/pyarrow/src \
           /opt/job/lib/python3*/site-packages/numpy/_core/include \
           /opt/job/lib/python3*/site-packages/numpy/_core/lib \
    && find /opt/job -type d -name tests -path '*/numpy/*' -prune -exec rm -rf {} +

FROM python:3.13-slim-trixie
LABEL org.opencontainers.image.title="job" \
      org.opencontainers.image.description="A batch job over files: every core, every pod, one exact result in Parquet" \
      org.opencontainers.image.licenses="Apache-2.0"
# PID 1 must pass signals on and reap orphans; Kubernetes has no --init
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends tini \
    && rm -rf /var/lib/apt/lists/* \
    && rm -rf /usr/local/bin/pip* /usr/bin/pip* /usr/local/lib/python3*/site-packages/pip* /usr/lib/python3/dist-packages/pip*
COPY --from=build /opt/job /opt/job
# a user without an entry in /etc/passwd has no home; the root file system may be read-only
ENV PATH=/opt/job/bin:$PATH \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1
USER 65532:65532
ENTRYPOINT ["tini", "--", "job"]
CMD ["--help"]
