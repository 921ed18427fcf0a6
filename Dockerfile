# Predicts new cases on a CPU: as any user, without network. docs/container.md says how to build and run it.
# constraints.txt is for this Python.
FROM python:3.13-slim
COPY pyproject.toml README.md LICENSE constraints.txt /build/
COPY configs /build/configs
COPY isles_jax /build/isles_jax
# The extra "export" reads networks from a .safetensors file.
RUN pip install --no-cache-dir --constraint /build/constraints.txt "/build[export]" && rm -r /build
# Any user can write here; nothing of it is kept.
ENV JAX_PLATFORMS=cpu HOME=/tmp
USER 1000:1000
WORKDIR /tmp
ENTRYPOINT ["isles-jax"]
CMD ["predict", "--help"]
