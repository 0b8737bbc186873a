# Writes the masses without the header.
set -e
step=1
. "$(dirname "$0")/functions.sh"
tail -n +$((step + 1)) "$1" | second
