# Run by `real-blender gui`: drives the window on the virtual screen. The work is in drive_window.py.
exec python3 "$(dirname "$0")/drive_window.py" "$@"
