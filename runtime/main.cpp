// r1run-rank: one process per rank.
int main() { return 0; }
