// r1run: the front door.
int main() { return 0; }
