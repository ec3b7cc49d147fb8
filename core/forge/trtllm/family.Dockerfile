# What forge adds to NVIDIA's image for a family of models. `forge dockerfile RECIPE` prints the result for a recipe.
# Dockerfiles/<family>.Dockerfile takes this one's place for its family.
#
# forge fills ${base} (the image, by digest), ${apt} and ${pip} (package names, each quoted). An instruction that names ${apt} or
# ${pip} falls away when there is nothing to install. There is no build context: COPY has nothing to copy.
FROM ${base}

RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends ${apt} \
 && rm -rf /var/lib/apt/lists/*

# What the base image is chosen for stays as it is: a package that wants another version of it fails here, not when serving.
RUN export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_COLOR=1 PIP_ROOT_USER_ACTION=ignore \
 && python3 -m pip list --format=freeze | { grep -iE '^(tensorrt|torch|nvidia-modelopt)' || true; } > /tmp/forge-kept.txt \
 && python3 -m pip install --no-cache-dir --constraint /tmp/forge-kept.txt ${pip} \
 && rm /tmp/forge-kept.txt
