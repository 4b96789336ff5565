# Scoring on a CPU, without a network and without root:
#   docker build --tag dgiqa-rt .
#   docker run --rm --network none --volume "$PWD:/data:ro" dgiqa-rt score /data
# Serving:
#   docker build --target serve --tag dgiqa-rt-serve .
#   docker run --rm --publish 8000:8000 dgiqa-rt-serve
FROM python:3.13-slim AS build
WORKDIR /src
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.13-slim AS base
COPY --from=build /wheels /wheels
RUN useradd --uid 10001 --create-home scorer

FROM base AS serve
# hadolint ignore=DL3013
RUN set -- /wheels/*.whl \
    && pip install --no-cache-dir "$1[cpu,serve]"
USER 10001
EXPOSE 8000
HEALTHCHECK CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/v2/health/ready')"]
ENTRYPOINT ["dgiqa-rt", "serve", "--host", "0.0.0.0"]

FROM base
# hadolint ignore=DL3013
RUN set -- /wheels/*.whl \
    && pip install --no-cache-dir "$1[cpu,openvino]"
USER 10001
# Engines and what OpenVINO compiles: keep it with --volume dgiqa-cache:/home/scorer/.cache
WORKDIR /data
ENTRYPOINT ["dgiqa-rt"]
CMD ["--help"]
