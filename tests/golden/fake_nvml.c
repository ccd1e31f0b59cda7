// Two cards that have used 2.5 and 3.5 joules.
static int ready;
static int cards[2];

int nvmlInit_v2(void) {
    ready = 1;
    return 0;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **card) {
    if (!ready || index >= 2) return 2;
    *card = &cards[index];
    return 0;
}

int nvmlDeviceGetTotalEnergyConsumption(void *card, unsigned long long *millijoules) {
    *millijoules = card == &cards[0] ? 2500 : 3500;
    return 0;
}
