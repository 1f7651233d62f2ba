package program

const machine = machineAArch64
