# Run by `real-blender gui`: OUT BACKEND_PYTHON. Blender measures and leaves by itself.
here=$(dirname "$0")
GAUSSMITH_PYTHON=$2 exec blender --gpu-backend opengl --window-geometry 0 0 1600 1000 --python-exit-code 1 \
    -P "$here/inside_ticks.py" -- "$1" "$2"
