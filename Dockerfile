# Scoring on a CPU, without a network and without root:
#   docker build --tag dgiqa-rt .
#   docker run --rm --network none --volume "$PWD:/data:ro" dgiqa-rt score /data
FROM python:3.13-slim AS build
WORKDIR /src
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.13-slim
COPY --from=build /wheels /wheels
# hadolint ignore=DL3013
RUN set -- /wheels/*.whl \
    && pip install --no-cache-dir "$1[cpu,openvino]" \
    && rm -r /wheels \
    && useradd --uid 10001 --create-home scorer
USER 10001
# Engines and what OpenVINO compiles: keep it with --volume dgiqa-cache:/home/scorer/.cache
WORKDIR /data
ENTRYPOINT ["dgiqa-rt"]
CMD ["--help"]
