package layers

func victim(dir string) {}
