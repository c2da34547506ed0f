# One image for engine, launcher, workers and api. `docker build --target site .`; `demo` adds what the example needs.
FROM python:3.11-slim AS build
WORKDIR /build
RUN python -m venv /opt/flightlog
COPY requirements-runtime.lock ./
RUN /opt/flightlog/bin/pip install --no-cache-dir --require-hashes -r requirements-runtime.lock
COPY pyproject.toml README.md LICENSE ./
COPY engine engine
COPY events events
COPY workers workers
RUN /opt/flightlog/bin/pip install --no-cache-dir hatchling==1.27.0 \
 && /opt/flightlog/bin/pip install --no-cache-dir --no-deps --no-build-isolation . \
 && /opt/flightlog/bin/pip uninstall -y hatchling

FROM python:3.11-slim AS site
RUN useradd --uid 10001 --create-home flightlog \
 && useradd --uid 10002 --no-create-home signer \
 && install -d -o flightlog -g flightlog -m 700 /site /run/flightlog \
 && install -d -o signer -g signer -m 700 /signer \
 && install -d -o signer -g signer -m 755 /run/signer
COPY --from=build /opt/flightlog /opt/flightlog
ENV PATH=/opt/flightlog/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONSAFEPATH=1 \
    FLIGHTLOG_RUNTIME_DIR=/run/flightlog \
    FLIGHTLOG_WORKSPACE=/site
USER flightlog
WORKDIR /home/flightlog
VOLUME /site
EXPOSE 8787
HEALTHCHECK --interval=10s --timeout=10s --start-period=20s CMD ["python", "-P", "-m", "engine.healthy", "site"]
ENTRYPOINT ["flightlog"]
CMD ["up", "--api-host", "0.0.0.0", "--api-port", "8787"]

FROM site AS demo
USER root
COPY requirements-examples.lock ./
RUN /opt/flightlog/bin/pip install --no-cache-dir --require-hashes -r requirements-examples.lock
COPY examples examples
USER flightlog
