number=$1
echo $((number + 3))
