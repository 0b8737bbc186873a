second() {
    cut -d, -f2
}
