package program

const machine = machineX86_64
