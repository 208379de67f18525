# monosoup in a container. docs/install.md says how to build and run it.
ARG PYTHON=3.13.16-slim-trixie

FROM python:${PYTHON} AS build
# The build of torch: cpu, or one for CUDA, such as cu130. Empty: the one of the package index
ARG TORCH=cpu
ENV UV_NO_CACHE=1 UV_PYTHON_DOWNLOADS=never UV_COMPILE_BYTECODE=1
RUN pip install --no-cache-dir uv==0.13.9 && uv venv /opt/monosoup
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY .ci/constraints.txt .ci/
RUN uv pip install --python /opt/monosoup ${TORCH:+--torch-backend "$TORCH"} \
    --constraints .ci/constraints.txt --requirements pyproject.toml
COPY monosoup_cli monosoup_cli
RUN uv pip install --python /opt/monosoup --no-deps .

FROM python:${PYTHON}
COPY --from=build /opt/monosoup /opt/monosoup
# Any user may write to both: docker run --user "$(id -u):$(id -g)"
RUN install -d -m 1777 /work /cache
ENV PATH=/opt/monosoup/bin:${PATH} HF_HOME=/cache
USER 1000:1000
WORKDIR /work
ENTRYPOINT ["monosoup"]
